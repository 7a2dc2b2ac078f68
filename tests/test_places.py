"""A run is found, and finds what it was made of, from whichever folder one works in."""

import json
import os
import shutil
from pathlib import Path

import pytest

from conftest import Invoke, settings_args, small_config
from random_llama import random_llama
from stage1 import Bottleneck
from stage1.errors import UsageError
from stage1.experiment import resume_run, train_run
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.session import found_anywhere
from stage1.sweeps.grid import Axis, plan
from stage1_datasets.tiny_squad import tiny_squad

FEW = ("train.steps=2", "eval.limit=4", "eval.max_new_tokens=4", "data.train=60", "data.selection=20")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and data, in which one works."""
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    random_llama(Path("model"))
    Path("own.json").write_text(json.dumps(list(tiny_squad("test", 12))))
    return tmp_path / "home"


@pytest.mark.usefixtures("few_prompts_suffice")
def test_what_was_typed_as_a_relative_path_is_found_from_another_folder(
    home: Path, invoke: Invoke, tmp_path: Path
) -> None:
    os.chdir(home)  # `invoke` has gone elsewhere
    typed = ("--model", "model", "--data", "own.json", *settings_args(FEW))
    assert invoke("train", *typed, "--output", "run", "--no-eval", "--quiet").code == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.chdir(elsewhere)
    run = str(home / "run")
    assert Bottleneck.from_pretrained(run).compressor.embed_dim == 32
    for command in (
        ["eval", run],
        ["train", "--resume", "--output", run],
        ["train", "--init", run, "--no-eval", "--steps", "1", "--output", "next"],
        ["diagnose", run, "--limit", "2"],
    ):
        assert invoke(*command, "--quiet").printed


def test_what_is_no_place_stays_a_name(home: Path) -> None:
    os.chdir(home)
    for name in ("tiny", "own"):  # a plugin's name means the plugin, whatever folder lies here
        Path(name).mkdir()
    config = found_anywhere(small_config("data=tiny-squad"))
    assert (config.model.name, config.data.name) == ("tiny", "tiny-squad")
    config = found_anywhere(
        small_config("data='train=own.json,test=absent.json'", "init=before", "model=model")
    )
    assert (config.data.train_from, config.data.name) == (str(home / "own.json"), "absent.json")
    assert (config.model.name, config.init) == (str(home / "model"), home / "before")


def test_a_sweep_goes_on_from_another_folder(home: Path, tmp_path: Path) -> None:
    os.chdir(home)
    folder = home / "grid"
    (cell,) = plan({"model": "model", "data": "own.json"}, [*FEW], [Axis("adapter", ["linear"])], [0], folder)
    Run.create(cell.config)
    os.chdir(tmp_path)
    whole = {"model": str(home / "model"), "data": str(home / "own.json")}
    plan(whole, [*FEW], [Axis("adapter", ["linear"])], [0], folder)


def test_a_run_goes_on_with_moved_inputs_that_are_the_same_and_with_no_others(home: Path) -> None:
    os.chdir(home)
    config = small_config(*FEW, "model=model", "data=own.json", "output=run")
    run = train_run(config, Progress(), with_evaluation=False).run
    shutil.move("model", "moved")
    shutil.move("own.json", "moved.json")
    with pytest.raises(UsageError, match="--model"):
        train_run(resume_run(run, run.config), Progress(), resume=run, with_evaluation=False)

    def go_on(**names: str) -> None:
        sections = {
            key: getattr(config, key).model_copy(update={"name": name}) for key, name in names.items()
        }
        given = run.config.model_copy(update=sections)
        train_run(resume_run(run, given), Progress(), resume=run, with_evaluation=False)

    go_on(model="moved", data="moved.json")
    random_llama(Path("model"), seed=1)
    with pytest.raises(UsageError, match="is not the one"):
        go_on(model="model", data="moved.json")
    Path("own.json").write_text(json.dumps(list(tiny_squad("test", 11))))
    with pytest.raises(UsageError, match="not those"):
        go_on(model="moved", data="own.json")

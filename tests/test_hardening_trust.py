"""A stranger's run, configuration or checkpoint runs no Python code of a model folder unless it is typed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import SMALL, Invoke, refused
from stage1 import Bottleneck
from stage1.config import ModelConfig, granted
from stage1.errors import UsageError
from stage1.evaluation.lm_eval.registered import RunLM
from stage1.experiment import evaluate_run, train_run
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1_models.tiny import MODEL_DIR

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
open({marker!r}, "a").close()
class Strange(LlamaConfig):
    def __init__(self, *args, **kwargs):
        open({marker!r}, "a").close()
        super().__init__(*args, **kwargs)
class StrangeModel(LlamaForCausalLM):
    config_class = Strange
"""

FEW = (*SMALL, "train.steps=0", "data.train=40", "data.selection=8", "eval.limit=4")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trained run whose files want its model's Python code, and the file that this code writes."""
    folder = tmp_path_factory.mktemp("stranger")
    marker, model, run = folder / "ran", folder / "run" / "model", folder / "run"
    shutil.copytree(MODEL_DIR, model)
    (model / "strange.py").write_text(CODE.format(marker=str(marker)))
    settings = json.loads((model / "config.json").read_text())
    settings["auto_map"] = {"AutoConfig": "strange.Strange", "AutoModelForCausalLM": "strange.StrangeModel"}
    (model / "config.json").write_text(json.dumps(settings))
    made = folder / "made"
    typed = {"model.name": str(model), "model.trust_remote_code": True, "output": str(made)}
    train_run(granted({}, typed, FEW), Progress(), with_evaluation=False)
    assert marker.exists(), "typed, it is run"
    for path in made.iterdir():
        path.rename(run / path.name)
    marker.unlink()
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["trust_remote_code"] is True
    assert json.loads((run / "bottleneck.json").read_text())["model"]["trust_remote_code"] is True
    return run, marker


@pytest.fixture
def copy(stranger: tuple[Path, Path], tmp_path: Path) -> Path:
    """The stranger's run, unfinished."""
    return Path(shutil.copytree(stranger[0], tmp_path / "unfinished", ignore=lambda *_: {"bottleneck.json"}))


def refuses(run: Callable[[], Any]) -> None:
    with pytest.raises(UsageError, match="--trust-remote-code") as caught:
        run()
    assert len(str(caught.value).splitlines()) == 2


def test_no_command_runs_a_strangers_code(
    stranger: tuple[Path, Path], copy: Path, invoke: Invoke, tmp_path: Path
) -> None:
    run, marker = stranger
    config = tmp_path / "a.yaml"
    config.write_text(f"model: {{name: {run / 'model'}, trust_remote_code: yes}}\n")
    new = str(tmp_path / "new")
    commands = [
        ["eval", str(run)],
        ["eval", str(run), "--tasks", "tiny-squad"],
        ["diagnose", str(run)],
        ["train", "--init", str(run), "--output", new],
        ["train", "--resume", "--output", str(copy)],
        ["train", str(config), "--output", new],
        ["train", str(run / "config.yaml"), "--output", new],
        ["sweep", str(config), "--over", "compressor.ratio=4,8", "--output", new],
        ["diagnose", str(run), "--model", str(run / "model")],
    ]
    for command in commands:
        refused(invoke(*command), "--trust-remote-code")
    assert not marker.exists()
    assert not Path(new).exists()


def test_nothing_in_python_runs_a_strangers_code(stranger: tuple[Path, Path], copy: Path) -> None:
    run, marker = stranger
    refuses(lambda: Bottleneck.from_pretrained(run))
    refuses(lambda: evaluate_run(Run.open(run), {}, Progress()))
    refuses(lambda: RunLM(run=str(run)))
    train_run(Run.open(copy).config, Progress(), resume=Run.open(copy), with_evaluation=False)
    assert not marker.exists()


@pytest.mark.usefixtures("few_prompts_suffice")
def test_what_is_typed_is_run(stranger: tuple[Path, Path], copy: Path, invoke: Invoke) -> None:
    run, marker = stranger
    commands = (
        ("eval", str(run), "--quiet"),
        ("eval", str(run), "--tasks", "tiny-squad", "--limit", "2"),
        ("diagnose", str(run), "--limit", "2"),
        ("train", "--resume", "--output", str(copy), "--no-eval"),
    )  # none is refused; what was read once in this process need not run again
    Bottleneck.from_pretrained(run, trust_remote_code=True)
    evaluate_run(Run.open(run), {"model.trust_remote_code": True}, Progress())
    RunLM(run=str(run), trust_remote_code=True)
    for command in commands:
        assert invoke(*command, "--trust-remote-code").printed
    assert marker.exists()
    marker.unlink()
    assert Run.open(copy).settings["model"]["trust_remote_code"] is True


def test_it_can_be_declined(stranger: tuple[Path, Path], invoke: Invoke) -> None:
    run, marker = stranger
    assert invoke("eval", str(run), "--quiet", "--no-trust-remote-code").printed
    assert not marker.exists()


@pytest.mark.parametrize("model", ["m", {"name": "m", "trust_remote_code": "on"}, {"name": "m"}, None])
def test_only_what_is_typed_counts(model: Any) -> None:
    file = {"model": model}
    assert granted(file, {"model.trust_remote_code": True}, []).model.trust_remote_code
    for setting in ("model.trust_remote_code=true", "model={name: m, trust_remote_code: true}"):
        assert granted(file, {}, [setting]).model.trust_remote_code
    wants = isinstance(model, dict) and "trust_remote_code" in model
    if wants:
        refuses(lambda: granted(file, {}, []))
        refuses(lambda: granted(file, {"model.name": "other"}, []))
        assert granted(file, {}, ["model.trust_remote_code=false"]).model == ModelConfig(name="m")
    else:
        assert not granted(file, {}, []).model.trust_remote_code

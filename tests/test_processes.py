"""Several processes at one run, as `accelerate launch` starts them."""

import json
from pathlib import Path

import pytest

from conftest import SMALL, launched, settings_args, small_config
from stage1.config import merge, validate
from stage1.config.presets import RECIPES
from stage1.experiment import train_run
from stage1.progress import Progress
from stage1.runs.run import Run
from trainings import results_of

FEW = (*SMALL, "data.train=60", "train.steps=2", "train.check_every=2", "eval.limit=12")


@pytest.mark.slow
def test_two_processes_share_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file of the evaluation is that of one process, byte for byte."""
    path = tmp_path / "run"
    train_run(small_config(*FEW, "eval.batch_size=4", f"output={path}"), Progress())
    written = [path / "results.json", *sorted(path.glob("predictions/*.jsonl"))]
    alone = [file.read_bytes() for file in written]
    monkeypatch.setenv("STAGE1_CACHE", str(tmp_path / "cache"))
    for file in written:
        file.unlink()
    shown = json.loads(launched("eval", str(path), "--json"))
    assert [file.read_bytes() for file in written] == alone
    assert shown["rows"] == results_of(path)["rows"]
    assert launched("eval", str(path), "--json")  # answers that are known


@pytest.mark.slow
def test_two_processes_train_two_phases(tmp_path: Path) -> None:
    settings = [*FEW, "compressor.ratio=32", "then.below=1", "then.train.steps=2", "then.train.check_every=2"]
    path = tmp_path / "run"
    launched("train", "--recipe", "two_phase", "--output", str(path), *settings_args(settings))
    run = Run(path)
    assert Run(path / "phase1").trained
    assert run.read_manifest()["processes"] == 2
    results = results_of(run)
    assert results["phases"]
    again = validate(merge(RECIPES.find("two_phase").settings, {"output": str(tmp_path / "alone")}, settings))
    alone = results_of(train_run(again, Progress()).run)
    ours, theirs = results["reconstruction"], alone["reconstruction"]
    assert ours["recon"] == pytest.approx(theirs["recon"], rel=1e-3)

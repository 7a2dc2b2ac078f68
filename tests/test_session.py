"""One process loads the LLM once, and hashes its files once, whatever it does with it."""

from pathlib import Path
from typing import Any

import pytest

import stage1.session as module
from conftest import FEW, SMALL, opened, small_config
from stage1.data.datasets import TrainedOn
from stage1.diagnosis.diagnose import diagnose_run
from stage1.experiment import train_run
from stage1.progress import Progress
from stage1.session import Session
from stage1.sweeps.grid import Axis, plan
from stage1.sweeps.sweep import Sweep


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, int]:
    """How often the LLM was loaded and its files were hashed, with nothing known of it beforehand."""
    monkeypatch.setenv("STAGE1_CACHE", str(tmp_path / "cache"))
    counts = {"load_llm": 0, "model_sha256": 0}

    def watch(name: str) -> None:
        own = getattr(module, name)

        def call(*args: Any, **options: Any) -> Any:
            counts[name] += 1
            return own(*args, **options)

        monkeypatch.setattr(module, name, call)

    for name in counts:
        watch(name)
    return counts


ONCE = {"load_llm": 1, "model_sha256": 1}


def test_training_and_evaluation(counted: dict[str, int], tmp_path: Path) -> None:
    outcome = train_run(small_config(f"output={tmp_path / 'run'}", *FEW), Progress())
    assert outcome.run.trained
    assert outcome.evaluation is not None
    assert counted == ONCE


def test_two_phases(counted: dict[str, int], tmp_path: Path) -> None:
    phases = ("then.below=1", "then.losses.prompt_ppl=1", "then.train.steps=2", "compressor.ratio=32")
    outcome = train_run(small_config(f"output={tmp_path / 'run'}", *FEW, *phases), Progress())
    assert [phase["trained"] for phase in outcome.run.read_manifest()["phases"]] == [True, True]
    assert counted == ONCE


@pytest.mark.usefixtures("few_prompts_suffice")
def test_a_diagnosis(counted: dict[str, int], tmp_path: Path) -> None:
    trained = train_run(small_config(f"output={tmp_path / 'run'}", *FEW), Progress(), with_evaluation=False)
    assert counted == {"load_llm": 0, "model_sha256": 0}  # on distinct tokens the LLM is not needed
    diagnose_run(trained.run, trained.run.config, 2, Progress())
    assert counted == ONCE


def test_a_sweep(counted: dict[str, int], tmp_path: Path) -> None:
    axes = [Axis.parse("compressor.ratio=4,8")]
    cells = plan({}, [*SMALL, *FEW], axes, [0], tmp_path)
    Sweep(tmp_path, axes, cells).run(Progress())
    assert all((cell.run.path / "results.json").exists() for cell in cells)
    assert len(cells) == 2
    assert counted == ONCE


# -- sessions ---------------------------------------------------------------------------------------------


def test_a_model_is_used_on_only_where_it_is_the_same() -> None:
    before = opened()

    def same(*settings: str, **how: Any) -> bool:
        config = small_config(*settings)
        return Session.open(config, Progress(), data="none", before=before, **how).model is before.model

    assert same()
    assert same("seed=3", "eval.limit=2")
    assert same(weights="table")  # all of it is more than the table
    assert not same("dtype=bfloat16")
    table = Session.open(small_config(), Progress(), weights="table", data="none")
    assert Session.open(small_config(), Progress(), data="none", before=table).model is not table.model


def test_what_was_not_asked_for_is_not_there() -> None:
    with pytest.raises(ValueError, match="without questions"):
        _ = Session.open(small_config(), Progress(), weights="table", data="none").data


def test_splits_or_for_a_run_trained_on_other_data_everything_as_test() -> None:
    config = small_config()
    split = Session.open(config, Progress(), weights="table").data
    other = TrainedOn("", "", frozenset())
    whole = Session.open(config, Progress(), weights="table", trained_on=other).data
    assert split.train
    assert split.selection
    assert whole.train == whole.selection == []
    assert split.test
    assert {q.id for q in split.test} <= {q.id for q in whole.test}


def test_the_same_under_another_configuration(session: Session) -> None:
    context = session.under(small_config("scope=context"))
    assert context.model is session.model
    assert context.data is session.data
    one, two = (s.prompts(session.data.test[:1])[0] for s in (session, context))
    assert one.ids == two.ids
    assert one.cross != two.cross

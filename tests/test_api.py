"""stage1 from Python: the commands as functions, with typed results."""

import json
from pathlib import Path

import pytest

import stage1
from conftest import small_config
from qa_files import record, written
from stage1.files import json_lines

SMALL = small_config().model_dump(mode="json", include={"data", "train", "eval"})
"""Settings that make a run a matter of seconds, as keyword arguments."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> stage1.Evaluated:
    folder = tmp_path_factory.mktemp("api") / "run"
    return stage1.train(compressor="pca", adapter="residual", output=folder, **SMALL)


def test_training_gives_typed_results_that_are_those_of_the_file(run: stage1.Evaluated) -> None:
    assert run.results is not None
    stored = json.loads((run.path / "results.json").read_text())
    rows = {row["row"]: row for row in stored["rows"]}
    assert run.results["bottleneck"].f1 == rows["bottleneck"]["f1"]
    assert run.results["text"].f1_ci95 == tuple(rows["text"]["f1_ci95"])
    assert run.results.verdict.text == stored["verdict"]["text"]
    assert run.results.gate.broken is False
    assert run.answers["text"].keys() == run.answers["bottleneck"].keys()
    assert len(run.answers["text"]) == run.results.questions.n == 24
    with pytest.raises(KeyError):
        run.results["no such row"]


def test_evaluating_again_gives_the_same_and_other_settings_something_else(run: stage1.Evaluated) -> None:
    before = (run.path / "results.json").read_bytes()
    assert stage1.evaluate(run.path).results == run.results
    other = stage1.evaluate(run, scope="context", limit=12)
    assert other.results is not None
    assert other.results.protocol["scope"] == "context"
    assert other.results.questions.n == 12
    shots = stage1.evaluate(run, protocol="few_shot", limit=6)
    assert shots.results is not None
    assert shots.results.protocol["name"] == "few_shot"
    assert (run.path / "results.json").read_bytes() == before


@pytest.mark.usefixtures("few_prompts_suffice")
def test_a_diagnosis_of_other_rules_leaves_the_runs_own_alone(run: stage1.Evaluated) -> None:
    own = stage1.diagnose(run, limit=5)
    assert isinstance(own.clean, bool)
    assert own.measured["protocol"]["n"] == 5
    stored = (run.path / "diagnosis.json").read_bytes()
    other = stage1.diagnose(run, limit=5, scope="context")
    assert other.measured["protocol"]["n"] == 5
    assert (run.path / "diagnosis.json").read_bytes() == stored
    sent = stage1.diagnose(run, limit=5, magnitude="sent")
    assert "adapter" in {stage["name"] for stage in sent.measured["ablation"]["stages"]}
    assert "adapter" not in {stage["name"] for stage in own.measured["ablation"]["stages"]}


@pytest.mark.usefixtures("few_prompts_suffice")
def test_a_diagnosis_asks_all_of_another_file(run: stage1.Evaluated, tmp_path: Path) -> None:
    path = written(tmp_path, "other.jsonl", json_lines([record(number) for number in range(30)]))
    assert stage1.diagnose(run, data=str(path)).measured["protocol"]["n"] == 30


def test_a_model_is_loaded_once_for_calls_that_hand_it_on(
    run: stage1.Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("loaded again")

    monkeypatch.setattr("stage1.session.load_llm", refuse)
    again = stage1.train(
        compressor="pca", adapter="linear", output=tmp_path / "again", session=run.session, **SMALL
    )
    assert again.results is not None


def test_settings_that_cannot_be_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(stage1.UsageError, match="Did you mean 'pca'"):
        stage1.train(compressor="pcaa", output=tmp_path / "run")
    with pytest.raises(stage1.UsageError, match="unknown option"):
        stage1.train(compresor="pca", output=tmp_path / "run")
    with pytest.raises(stage1.UsageError, match="does not exist"):
        stage1.evaluate(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep(tmp_path: Path) -> None:
    record = stage1.sweep(
        {"adapter": ["linear", "identity"]}, tmp_path / "grid", compressor="identity", **SMALL
    )
    assert [cell["settings"] for cell in record["cells"]] == [{"adapter": "linear"}, {"adapter": "identity"}]
    assert all(cell["results"] for cell in record["cells"])

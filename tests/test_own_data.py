"""Runs on one's own files: known again by their content, honest about what was seen, bad records counted."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import CtrlC, Invoke, Notes, refused, small_config
from qa_files import csv_plain, written
from stage1.errors import UsageError
from stage1.experiment import evaluate_run, train_run
from stage1.files import write_record
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1_datasets.tiny_squad import tiny_squad
from trainings import results_of

PASSAGES = 30
OWN = 18
"""Test questions of the run: a tenth of the passages, six questions each."""


@pytest.fixture(scope="module")
def records() -> list[Any]:
    return list(tiny_squad("test", PASSAGES))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, records: list[Any]) -> Run:
    """A run on a file beside its folder; a blank and a far too long question stand in the file."""
    folder = tmp_path_factory.mktemp("own")
    odd = [{**records[0], "id": "blank", "question": " "}]
    odd += [
        {**record, "id": f"long-{n}", "question": "why " * 2_000} for n, record in enumerate(records[::6])
    ]
    file = written(folder, "own.json", json.dumps([*records, *odd]))
    notes = Notes()
    config = small_config(
        f"data={file}", "train.steps=20", "eval.limit=40", f"output={folder / 'run'}", "seed=3"
    )
    run = train_run(config, notes, rows=("text", "raw", "bottleneck", "no_context")).run
    assert any("1 with a blank question (question 'blank')" in note for note in notes.notes)
    assert any(f"{PASSAGES} questions with a question too long" in note for note in notes.notes)
    return run


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    shutil.copytree(trained.path, tmp_path / "run")
    return Run(tmp_path / "run")


def numbers(results: dict[str, Any]) -> list[tuple[str, int, float, float]]:
    rows = (row for row in results["rows"] if row["row"] in ("text", "bottleneck"))
    return [(row["row"], row["n"], row["f1"], row["exact_match"]) for row in rows]


def test_the_runs_own_file_is_its_own_whatever_it_is_called(
    trained: Run, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = numbers(results_of(trained))
    assert own[0][1] == OWN
    assert own[0][2] > 50
    file = Path(trained.config.data.name)
    copy = written(run.path.parent, "copy.csv", csv_plain(json.loads(file.read_text(encoding="utf-8"))))
    monkeypatch.chdir(file.parent)
    for name in (f"../{file.parent.name}/own.json", str(copy)):
        evaluation = evaluate_run(run, {"data.name": name}, Progress()).evaluation
        assert evaluation is not None
        assert numbers(evaluation.results) == own, name


def test_of_other_data_what_was_seen_is_left_out_and_counted(
    run: Run, records: list[Any], tmp_path: Path
) -> None:
    before = (run.path / "results.json").read_bytes()
    fresh = list(tiny_squad("test", 3, seed=7))
    seen_again = [{**r, "id": f"x{r['id']}"} for r in records]
    other = written(tmp_path, "other.json", json.dumps([*seen_again, *fresh]))
    notes = Notes()
    evaluation = evaluate_run(run, {"data.name": str(other), "eval.limit": None}, notes).evaluation
    assert evaluation is not None
    assert {row["n"] for row in evaluation.results["rows"]} == {len(fresh) + OWN}
    seen = len(records) - OWN
    assert any(f"{seen} questions with a passage that the run has seen" in note for note in notes.notes)
    assert (run.path / "results.json").read_bytes() == before


def test_a_file_that_has_changed_is_other_data_by_its_old_name(
    run: Run, records: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run.path / "results.json").read_bytes()
    written(tmp_path, "own.json", json.dumps([*records, *tiny_squad("test", 4, seed=7)]))
    settings = run.config.model_copy(update={"data": run.config.data.model_copy(update={"name": "own.json"})})
    run.write_config(settings)
    monkeypatch.chdir(tmp_path)
    notes = Notes()
    evaluation = evaluate_run(run, {"eval.limit": 6}, notes).evaluation
    assert evaluation is not None
    assert any("own.json is no longer what the run was trained on" in note for note in notes.notes)
    assert any(f"{len(records) - OWN} questions with a passage" in note for note in notes.notes)
    assert (run.path / "results.json").read_bytes() == before


def test_without_its_record_a_run_is_not_asked_about_other_data(run: Run, tmp_path: Path) -> None:
    other = written(tmp_path, "other.json", json.dumps(list(tiny_squad("test", 3, seed=7))))
    (run.path / "data.json").write_text("{")
    with pytest.raises(UsageError, match=r"data\.json cannot be used"):
        evaluate_run(run, {"data.name": str(other)}, Progress())


def test_a_run_has_seen_what_the_run_that_it_starts_from_has_seen(run: Run, tmp_path: Path) -> None:
    other = written(tmp_path, "other.json", json.dumps(list(tiny_squad("train", 30, seed=7))))
    settings = (f"data={other}", "train.steps=0", f"init={run.path}", f"output={tmp_path / 'second'}")
    second = train_run(small_config(*settings), Progress(), with_evaluation=False).run
    first, both = run.read_trained_on(), second.read_trained_on()
    assert both.passages > first.passages
    assert both.content != first.content


@pytest.mark.parametrize("name", ["data.json", "manifest.json"])
def test_a_start_whose_record_is_damaged_is_refused_before_there_is_a_folder(
    name: str, run: Run, tmp_path: Path
) -> None:
    (run.path / name).write_text("{")
    with pytest.raises(UsageError, match=name):
        train_run(small_config(f"init={run.path}", f"output={tmp_path / 'second'}"), Progress())
    assert not (tmp_path / "second").exists()


def test_what_the_start_had_seen_is_known_when_it_is_gone(run: Run, tmp_path: Path) -> None:
    other = written(tmp_path, "other.json", json.dumps(list(tiny_squad("train", 30, seed=7))))
    settings = (f"data={other}", "train.steps=4", "train.save_every=2", f"init={run.path}")
    config = small_config(*settings, f"output={tmp_path / 'second'}")
    with pytest.raises(KeyboardInterrupt):
        train_run(config, CtrlC("Training", 3), with_evaluation=False)
    second = Run.open(tmp_path / "second")
    before = second.read_trained_on()
    manifest = second.read_manifest()
    write_record(second.path / "manifest.json", {**manifest, "teacher_forced": True})
    shutil.rmtree(run.path)
    train_run(config, Progress(), resume=second, with_evaluation=False)
    assert second.trained
    assert second.read_trained_on() == before
    assert second.read_manifest()["teacher_forced"] is True


def test_a_killed_evaluation_of_other_questions_is_gone_on_with(run: Run, tmp_path: Path) -> None:
    rows = ("text", "raw", "bottleneck", "no_context")
    evaluate_run(run, {"eval.limit": 3}, Progress(), rows)
    [place] = (run.path / "evaluations").iterdir()
    for name in ("data.json", "results.json"):  # it was killed behind its first file
        (place / name).unlink()
    evaluate_run(run, {"eval.limit": 3}, Progress(), rows)
    assert [*(run.path / "evaluations").iterdir()] == [place]
    assert (place / "results.json").exists()


def test_a_runs_predictions_are_scored_as_they_were(run: Run, invoke: Invoke) -> None:
    file = run.config.data.name
    for row in ("text", "bottleneck"):
        predictions = str(run.path / "predictions" / f"{row}.jsonl")
        shown = invoke("score", file, predictions).printed
        [found] = [r for r in results_of(run)["rows"] if r["row"] == row]
        expected = f"exact match {found['exact_match']:.6f}   F1 {found['f1']:.6f}   over {OWN} answered"
        assert expected in shown
        questions = PASSAGES * 7
        assert f"without a prediction, which counts 0: {questions - OWN}" in shown


def test_strict_refuses_before_anything_is_written(trained: Run, invoke: Invoke, tmp_path: Path) -> None:
    file = Path(trained.config.data.name)
    train = ("train", "--strict", "--output", "strict", "--data")
    refused(invoke(*train, str(file)), "1 with a blank question (question 'blank')")
    lines = json.loads(file.read_text(encoding="utf-8"))
    written(tmp_path, "long.json", json.dumps([line for line in lines if line["id"] != "blank"]))
    refused(invoke(*train, "long.json"), "too long for a prompt")
    assert not (tmp_path / "strict").exists()
    refused(invoke("score", str(file), "none.json", "--strict"), "blank question")

"""`stage1 diagnose`: on a run, without one, on hostile texts, and on what cannot be diagnosed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import Invoke, refused, settings_args
from pairs import pairs
from qa_files import Record, nested, record, written
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.diagnosis import show
from stage1.diagnosis.diagnose import diagnose, diagnose_run
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.session import Session
from test_diagnose_probes import case_of

LIMIT = 6

pytestmark = pytest.mark.usefixtures("few_prompts_suffice")


# -- on a run -----------------------------------------------------------------------------------------------


def test_on_a_run(spoilt: Path, invoke: Invoke) -> None:
    shown = invoke("diagnose", "run", "--limit", str(LIMIT)).printed
    stored = json.loads((spoilt / "diagnosis.json").read_text(encoding="utf-8"))
    assert stored["run"] == "run"
    assert stored["questions"] == LIMIT
    for meaning in ("raw", "inverse", "bottleneck", "true_norms", "closed_form"):
        assert show.MEANINGS[meaning] in shown
    assert "Context" in shown
    assert "Answer" in shown
    assert shown.rstrip().splitlines()[-1].startswith("Diagnosis: ")
    for number, finding in enumerate(stored["findings"], 1):
        assert f"{number}. {finding['title']}" in shown
    assert set(stored["measured"]) == {
        *("protocol", "ablation", "tokens", "statistics", "compressor"),
        *("generation", "objective", "divergence"),
    }


def test_json_is_what_is_written(spoilt: Path, invoke: Invoke) -> None:
    result = invoke("diagnose", "run", "--limit", str(LIMIT), "--json", "-q", "--output", "copy.json")
    stored = json.loads((spoilt / "diagnosis.json").read_text(encoding="utf-8"))
    assert stored.pop("sha256")
    assert json.loads(result.printed) == stored
    assert result.out == Path("copy.json").read_text(encoding="utf-8")
    assert result.err == ""


# -- without one --------------------------------------------------------------------------------------------


def test_without_training(tmp_path: Path, invoke: Invoke) -> None:
    options = ("--model", "tiny", "--compressor", "pca", "--set", "compressor.ratio=32")
    settings = settings_args(("data.train=300", "eval.max_new_tokens=8"))
    shown = invoke("diagnose", *options, *settings, "--limit", str(LIMIT), "--output", "found.json").printed
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert not found["clean"]
    assert [finding["cause"] for finding in found["findings"]] == ["too_lossy"]
    assert "1. The code is too small for this adapter and objective" in shown
    assert "critical, explains" in shown
    assert "Try: stage1 train --recipe phase2" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json"]


# -- refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more", [("--compressor", "pca"), ("--adapter", "linear"), ("--set", "compressor.ratio=4")]
)
@pytest.mark.usefixtures("spoilt")
def test_a_run_with_parts_of_its_own(invoke: Invoke, more: tuple[str, ...]) -> None:
    refused(invoke("diagnose", "run", *more), "run has its own compressor", "leave out RUN")


# -- texts from elsewhere -----------------------------------------------------------------------------------

HOSTILE = "\x1b[2J\x1b[31m\x07\x00\u202egpj.exe\u2066\u200b\x9b31m [bold]loud[/bold] [/] " + "long" * 80
HIDDEN = "\x1b\x07\x00\x9b\u202e\u2066\u200b\u2028"


def hostile(number: int) -> Record:
    """A record whose every text is hostile."""
    context = f"Person {number} lives here. {HOSTILE}"
    answers = {"text": [context], "answer_start": [0]}
    texts: Record = {"id": f"q{number}\x1b[31m", "title": HOSTILE, "question": f"Who {HOSTILE}?"}
    return record(number, context=context, answers=answers, **texts)


@pytest.mark.usefixtures("spoilt")
def test_hostile_texts(tmp_path: Path, invoke: Invoke) -> None:
    written(tmp_path, "hostile.json", nested([hostile(number) for number in range(30)]))
    result = invoke("diagnose", "run", "--data", "hostile.json", "--limit", "3")
    shown = result.printed + result.err
    assert not set(shown) & set(HIDDEN)
    assert "\\u001b" in result.out
    assert "\\u0007" in result.out
    assert "Answer" in result.out
    assert max(map(len, shown.splitlines())) < 400


def test_excerpt() -> None:
    assert show.excerpt("plain text, ünïcödé 漢字 🙂") == "plain text, ünïcödé 漢字 🙂"
    assert show.excerpt("a\nb\x1b[31m\u202e\t\r") == "a⏎b\\u001b[31m\\u202e\\u0009\\u000d"
    assert not set(show.excerpt(HOSTILE, 10_000)) & set(HIDDEN)
    assert show.excerpt("x" * 100) == "x" * 59 + "…"
    assert len(show.excerpt(HOSTILE)) == 60


# -- what cannot be measured --------------------------------------------------------------------------------


def printed(found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    from stage1.cli.display import show_diagnosis

    show_diagnosis(found, json=False)
    return capsys.readouterr().out


def test_a_compressor_that_changes_the_length(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing compares position with position; F1 still tells."""
    found = diagnose(case_of(pairs(session.table.shape[1]), session, LIMIT), "RUN")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["measured"]["tokens"] is None
    assert found["findings"][0]["cause"] == "too_lossy"
    assert "Diagnosis: The code is too small" in printed(found, capsys)


def test_no_training_split(
    session: Session, bottleneck: Bottleneck, capsys: pytest.CaptureFixture[str]
) -> None:
    data = session.data._replace(train=[], selection=[])
    found = diagnose(case_of(bottleneck, replace(session, questions=data), LIMIT), "RUN")
    assert found["clean"]
    names = [row["name"] for row in found["measured"]["ablation"]["variants"]]
    assert "closed_form" not in names
    assert "Nothing wrong was found" in printed(found, capsys)


def test_one_question(spoilt: Path) -> None:
    assert diagnose_run(Run.open(spoilt), Run.open(spoilt).config, 1, Progress())["questions"] == 1

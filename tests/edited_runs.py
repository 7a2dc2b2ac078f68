"""Copies of a finished run with other answers or settings, as an evaluation would have written them."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stage1.config import merge, validate
from stage1.evaluation.summary import marked, summary
from stage1.files import read_record, write_record
from stage1.runs.answers import Answer
from stage1.runs.run import Run

Edit = Callable[[int, Answer], Answer]


def answers_of(run: Run) -> dict[str, list[Answer]]:
    rows = (run.read_results() or {})["rows"]
    return {row["row"]: run.read_answers(row["row"]) for row in rows}


def said(text: str) -> Edit:
    """Every answer is `text`."""
    return lambda _, answer: answer._replace(prediction=text)


def copied(source: Path, target: Path, edits: Mapping[str, Edit] | None = None, *settings: str) -> Path:
    """A copy with other answers, scored and summed up, and other settings."""
    shutil.copytree(source, target)
    run = Run(target)
    if settings:
        config = validate(merge(run.settings, {}, settings))
        run.write_config(config)
        manifest = read_record(target / "manifest.json", "")
        write_record(target / "manifest.json", {**manifest, "seed": config.seed})
    answers = answers_of(Run(source))
    for row, edit in (edits or {}).items():
        answers[row] = [marked(edit(number, answer)) for number, answer in enumerate(answers[row])]
    write(run, answers)
    return target


def write(run: Run, answers: Mapping[str, list[Answer]], **more: Any) -> None:
    """What an evaluation with these answers would write; `more` replaces what it measured besides."""
    results = {**(run.read_results() or {}), **more}
    counted = results["questions"]
    measured = {key: results[key] for key in ("rate", "reconstruction", "size", "gate")}
    measured["truncation"] = {key: counted[key] for key in ("truncated_prompts", "truncated_tokens")}
    found = summary(answers, run.config, results["rows"][0]["task"], measured, results.get("training"))
    run.write_evaluation({**results, **found}, answers)


def reseal(run: Run, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit results.json and make its checksum anew, as someone would who has something to hide."""
    results = read_record(run.path / "results.json", "")
    change(results)
    write_record(run.path / "results.json", results)

"""A finished run as it lies in its folder: results, answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from stage1.errors import UsageError
from stage1.runs.answers import Answer
from stage1.runs.run import Run


def evaluated(path: Path) -> tuple[Run, dict[str, Any]]:
    """A run and its results.

    Raises:
        UsageError: there is none, it is damaged, or was not evaluated.
    """
    run = Run.open(path)
    results = run.read_results()
    if results is None:
        run.require_trained()
        raise UsageError(f"{path} has no results.", f"Measure it: stage1 eval {quote(str(path))}")
    return run, results


def rows_of(run: Run, results: Mapping[str, Any]) -> dict[str, list[Answer]]:
    """Every row's answers.

    Raises:
        UsageError: they are missing or damaged, or the rows are about different questions.
    """
    rows = {row["row"]: run.read_answers(row["row"]) for row in results["rows"]}
    first = _asked(rows["text"])
    if odd := [name for name, answers in rows.items() if _asked(answers) != first]:
        raise UsageError(
            f"The row {odd[0]} of {run.path} answers other questions than the row text.",
            f"Measure it again: stage1 eval {quote(str(run.path))}",
        )
    return rows


def _asked(answers: Sequence[Answer]) -> list[tuple[Any, ...]]:
    return [(answer.id, *answer.asked) for answer in answers]

"""A finished run as it lies in its folder: settings, results, answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from stage1.config import RunConfig, flat
from stage1.errors import UsageError
from stage1.runs.answers import Answer
from stage1.runs.run import Run

ELSEWHERE = {"output", "device", "log_with", "compressors"}
"""Settings that say where a run was made and not what it is, and what is said in another way."""


def settings(config: RunConfig) -> dict[str, Any]:
    """Every setting by its dotted path, as `--set` takes it; a plugin's name by the place it takes."""
    tree = config.model_dump(mode="json", exclude=ELSEWHERE)
    chosen = [choice.model_dump(mode="json") for choice in config.compressors]
    parts = dict(zip(config.compressor_paths, chosen, strict=True))
    leaves = {**flat(parts), **flat(tree)}
    return {key.removesuffix(".name"): value for key, value in leaves.items()}


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

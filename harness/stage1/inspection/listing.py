"""The runs in a folder, a line each, the damaged ones among them."""

import math
import os
import re
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stage1.config import format_setting, settings_of
from stage1.errors import Stage1Error, UsageError, suggest
from stage1.runs.folder import FOLDERS
from stage1.runs.run import Run

DEEPEST = 3
"""Folders between the one that is named and a run: a sweep's runs are one further down."""


class Listed(BaseModel, frozen=True):
    """A run in a line; what is not known is None."""

    run: str
    state: str
    """`evaluated`, `trained`, `unfinished` or `damaged`."""
    date: str | None = None
    """When its training began, in UTC."""
    model: str | None = None
    protocol: str | None = None
    method: str | None = None
    """Compressors and adapter."""
    bits_per_token: float | None = None
    f1: float | None = None
    share: float | None = None
    """The bottleneck's share of the text F1, 0 to 1."""
    verdict: str | None = None
    problem: str | None = None
    """Why it is damaged."""
    settings: dict[str, Any] = {}


KEYS = tuple(key for key in Listed.model_fields if key != "settings")


def list_runs(
    folder: str | PathLike[str] = "runs",
    *,
    where: Sequence[str] = (),
    sort: str = "date",
    reverse: bool = False,
) -> list[Listed]:
    """The runs in and below `folder`, as `stage1 runs`; one that is damaged is listed as such.

    Args:
        folder: where they lie, sweeps included.
        where: conditions that all hold: `compressor=pca`, `f1>80`, `verdict!=undecided`; a key is one of
            `KEYS` or a setting's path.
        sort: a key; numbers and dates from the largest, texts from A to Z.
        reverse: the other way round.

    Raises:
        UsageError: there is no such folder, or a condition or key is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.", "Name the folder that your runs are in.")
    conditions = [_Condition(text) for text in where]
    every = [_listed(path) for path in _found(folder, 0)]
    known = {*KEYS, *(key for run in every for key in run.settings)}
    for key in (sort, *(condition.key for condition in conditions)):
        if every and key not in known:
            raise UsageError(f"No run has {key!r}. {suggest(key, KEYS)}", "Or a setting: train.lr, seed, …")
    kept = [run for run in every if all(condition.holds(run) for condition in conditions)]
    there = [run for run in kept if _value(run, sort) is not None]
    numeric = sort == "date" or all(isinstance(_value(run, sort), int | float) for run in there)
    there.sort(key=lambda run: _value(run, sort) if numeric else str(_value(run, sort)))
    if numeric != reverse:
        there.reverse()
    return there + [run for run in kept if _value(run, sort) is None]


class _Condition:
    """`KEY=VALUE`, `KEY!=VALUE`, `KEY<VALUE`, `KEY>VALUE`; more or less is for numbers."""

    def __init__(self, text: str) -> None:
        match = re.fullmatch(r"\s*([\w.]+)\s*(!=|=|<|>)\s*(.*?)\s*", text, re.DOTALL)
        if match is None:
            raise UsageError(
                f"--where {text!r} is no condition.", "Write compressor=pca, verdict!=undecided or 'f1>80'."
            )
        self.key, self.sign, self.value = match.groups()
        try:
            self.number = float(self.value)
        except ValueError:
            if self.sign in "<>":
                raise UsageError(f"--where {text!r} compares with no number.", "Write 'f1>80'.") from None
            self.number = math.nan  # which no number equals

    def holds(self, run: Listed) -> bool:
        value = _value(run, self.key)
        number = value if isinstance(value, int | float) else math.nan
        if self.sign in "<>":
            return number < self.number if self.sign == "<" else number > self.number
        same = value is not None and (format_setting(value) == self.value or number == self.number)
        return same == (self.sign == "=")


def _value(run: Listed, key: str) -> Any:
    return getattr(run, key) if key in KEYS else run.settings.get(key)


def _found(folder: Path, depth: int) -> Iterator[Path]:
    """The runs' folders, in the order of their names; what is inside a run belongs to it."""
    parts = [os.path.lexists(folder / name) for name in FOLDERS]
    if all(parts) or (any(parts) and os.path.lexists(folder / "config.yaml")):
        yield folder
    elif depth <= DEEPEST:
        try:
            inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
        except OSError:
            return
        for path in inside:
            if not path.name.startswith("."):
                yield from _found(path, depth + 1)


def _listed(path: Path) -> Listed:
    try:
        run = Run.open(path)
        config, state = run.config, "trained" if run.trained else "unfinished"
        date = run.read_manifest()["created"] if os.path.lexists(path / "manifest.json") else None
        facts: dict[str, Any] = {
            "date": date,
            "model": Path(config.model.name).name,
            "method": f"{' → '.join(config.compressor_names)} → {config.adapter.name}",
            "settings": settings_of(config),
        }
        if (results := run.read_results()) is not None:
            state = "evaluated"
            ours = next(row for row in results["rows"] if row["row"] == "bottleneck")
            facts |= {
                "protocol": results["protocol"]["name"],
                "bits_per_token": results["rate"]["bits_per_token"],
                "f1": ours["f1"],
                "share": results["verdict"]["ratio"],
                "verdict": results["verdict"]["level"],
            }
        return Listed(run=str(path), state=state, **facts)
    except (Stage1Error, KeyError, TypeError, ValueError, StopIteration) as error:
        problem = str(error).splitlines()[0] if isinstance(error, Stage1Error) else "its files lack something"
        return Listed(run=str(path), state="damaged", problem=problem)

"""A grid of runs with one command, and what came of it.

    FOLDER/ sweep.json  sweep.csv  <cell>/ (a run's folder)  …

The runs' folders are the state: a sweep that was interrupted is started again and goes on where it was.
"""

import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stage1.config import DataConfig, RunConfig, format_setting
from stage1.data.datasets import load_qa, spread
from stage1.data.records import Question
from stage1.errors import UsageError
from stage1.evaluation.conditions import NEEDED
from stage1.evaluation.statistics import Comparison, Floats
from stage1.files import make_output, read_record, to_csv, write_atomic, write_record
from stage1.plugins.executors import Executor, Job, JobOutcome
from stage1.progress import Progress
from stage1.runs.folder import own_place
from stage1.runs.run import Run
from stage1.sweeps.grid import Axis, Cell, groups, label
from stage1.sweeps.worker import Worker, carry_out, unpack


def asked(config: RunConfig) -> list[Question]:
    """The test questions that a run of `config` is asked."""
    data = config.data.model_copy(update={"train": 1, "selection": 1})
    return _asked(data.model_dump_json(), config.eval.limit)


@cache
def _asked(data: str, limit: int | None) -> list[Question]:
    return spread(load_qa(DataConfig.model_validate_json(data)).test, limit)


def question_f1(run: Run, questions: Sequence[Question]) -> Floats:
    """F1 (0 to 100) of each question's answer in the row `bottleneck`, as the run keeps it: [n].

    Raises:
        UsageError: the answers are missing, damaged or to other questions.
    """
    answers = run.read_answers("bottleneck")
    if [answer.id for answer in answers] != [question.id for question in questions]:
        raise UsageError(
            f"The row bottleneck of {run.path} answers other questions than this comparison is about.",
            "Compare runs with the same data and eval.limit.",
        )
    return np.array([answer.f1 for answer in answers])


class Baseline(NamedTuple):
    """The value of one axis that the others are compared to."""

    key: str
    value: Any

    @classmethod
    def parse(cls, text: str, cells: Sequence[Cell]) -> "Baseline":
        """`recipe=phase1`, where that is an axis and one of its values.

        Raises:
            UsageError: it is not, or the cells to compare are asked different questions.
        """
        choices = {f"{k}={format_setting(v)}": cls(k, v) for cell in cells for k, v in cell.settings.items()}
        if text not in choices:
            raise UsageError(
                f"--compare {text!r} is not a value of an --over.",
                f"Choices: {', '.join(choices) or '(none)'}.",
            )
        baseline = choices[text]
        for group in groups(cells):
            other = next(cell for cell in cells if cell.settings == baseline.opposite(group[0].settings))
            ours, theirs = ([q.id for q in asked(cell.config)] for cell in (group[0], other))
            if ours != theirs:
                raise UsageError(
                    f"{label(group[0].settings)} is asked other questions than {label(other.settings)}.",
                    "Compare cells with the same data and eval.limit.",
                )
        return baseline

    def opposite(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings that differ from `settings` in this axis only."""
        return {**settings, self.key: self.value}


class Sweep:
    """Runs the cells of a grid, and says what came of them.

    Args:
        folder: where the runs and the table of them go; another sweep's table there stays.
        axes: what varies.
        cells: from `plan`.
        baseline: what every cell is compared to; None: nothing.

    Attributes:
        errors: the names of the cells that failed, with the reason.
    """

    def __init__(
        self, folder: Path, axes: Sequence[Axis], cells: Sequence[Cell], baseline: Baseline | None = None
    ) -> None:
        self.folder, self.axes, self.cells, self.baseline = folder, axes, cells, baseline
        self.errors: dict[str, str] = {}
        self._f1: dict[str, Floats] = {}  # cell → F1 of each question
        self._comparisons: dict[tuple[Any, ...], Comparison] = {}

    # -- running --------------------------------------------------------------------------------------

    def run(
        self, progress: Progress, executor: Executor | None = None, rows: Collection[str] = NEEDED
    ) -> None:
        """Train and evaluate the cells; sweep.json and sweep.csv grow with each.

        An error of ours ends its cell alone. A cell that is finished is not run again, one that was begun
        resumes, whatever carried it out before. `rows` are those to ask, see `evaluate`. Without an
        `executor` this process carries out one cell after the other.

        Raises:
            UsageError: the folder cannot be made, or the executor cannot be used.
            KeyboardInterrupt: the same call resumes.
        """
        make_output(self.folder)
        for left in self.folder.glob(f"{MARK}*"):  # by a sweep that was killed
            left.unlink(missing_ok=True)
        waiting = [cell for cell in self.cells if not self._settled(cell, progress, rows)]
        if waiting:
            try:
                self._carry_out(waiting, executor, progress, tuple(rows))
            except KeyboardInterrupt:
                raise KeyboardInterrupt("Resume with the same `stage1 sweep` command.") from None
        self.write()

    def _settled(self, cell: Cell, progress: Progress, rows: Collection[str]) -> bool:
        """Whether there is nothing to do for it: it is finished, or its folder is damaged."""
        try:
            settled = finished(cell.run, rows)
        except UsageError as error:
            self._failed(cell, str(error), progress)
            return True
        if settled:
            progress.note(f"{self._place(cell.name)}: finished already.")
        return settled

    def _carry_out(
        self,
        cells: Sequence[Cell],
        executor: Executor | None,
        progress: Progress,
        rows: tuple[str, ...],
    ) -> None:
        folder = self.folder.resolve()
        with _marked(folder) if executor else nullcontext("") as mark:
            named = {cell.name: cell for cell in cells}
            jobs = [
                Job(cell.name, cell.config, cell.run.path.resolve(), folder, mark, rows) for cell in cells
            ]
            with progress.task("Runs", total=len(jobs), unit="runs") as advance:
                done = (
                    self._in_turn(jobs, progress) if executor is None else executor.carry_out(carry_out, jobs)
                )
                for job, outcome in done:
                    cell = named[job.name]
                    if outcome.files is not None:
                        unpack(outcome.files, cell.run.path)
                    if outcome.error is not None:
                        self._failed(cell, outcome.error, progress)
                    elif executor is not None:
                        progress.note(f"{self._place(job.name)}: done.")
                    self.write()
                    advance(1)

    def _in_turn(self, jobs: Sequence[Job], progress: Progress) -> Iterator[tuple[Job, JobOutcome]]:
        """One after the other in this process, which shows what they do."""
        worker = Worker(progress)
        for job in jobs:
            progress.note(self._place(job.name))
            yield job, worker(job)

    def _failed(self, cell: Cell, error: str, progress: Progress) -> None:
        self.errors[cell.name] = error
        progress.note(f"{cell.name} failed: {error}")

    def _place(self, name: str) -> str:
        return f"{[cell.name for cell in self.cells].index(name) + 1} of {len(self.cells)}: {name}"

    def write(self) -> None:
        """Replace sweep.json and sweep.csv by what is there now."""
        record = self.record()
        write_record(self.file, record)
        write_atomic(self.file.with_suffix(".csv"), to_csv(_table(record, self.folder)).encode())

    @cached_property
    def file(self) -> Path:
        """Where the record goes: sweep.json, or sweep-2.json, … where that holds what this sweep has not."""

        def grows(place: Path) -> bool:
            try:
                before = read_record(place, "")
            except UsageError:  # damaged: it is made of the runs, and made again
                return True
            compare = self._compared
            ours = {cell.run.path.name for cell in self.cells}
            return before["compare"] in (None, compare) and {cell["run"] for cell in before["cells"]} <= ours

        return own_place(self.folder, "sweep", grows, ".json")

    @property
    def _compared(self) -> dict[str, Any] | None:
        return self.baseline and {"axis": self.baseline.key, "value": self.baseline.value}

    # -- what came of it ------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """The content of sweep.json: `cells` are the runs, `averages` over the seeds finished so far."""
        done = [cell for cell in self.cells if cell.name not in self.errors and self._is_done(cell)]
        names = {cell.name for cell in done}
        return {
            "schema": 1,
            "axes": {axis.key: axis.values for axis in self.axes},
            "seeds": list(dict.fromkeys(cell.seed for cell in self.cells)),
            "compare": self._compared,
            "cells": [
                {
                    "settings": cell.settings,
                    "seed": cell.seed,
                    "run": cell.run.path.name,
                    "results": cell.run.read_results() if cell.name in names else None,
                    "error": self.errors.get(cell.name),
                }
                for cell in self.cells
            ],
            "averages": [self._average(group, done) for group in groups(done)],
        }

    def _is_done(self, cell: Cell) -> bool:
        try:
            return finished(cell.run)
        except UsageError as error:  # damaged; its turn may not have come yet
            self.errors[cell.name] = str(error)
            return False

    def _average(self, group: Sequence[Cell], done: Sequence[Cell]) -> dict[str, Any]:
        comparison = self._comparison(group[0])
        ours = self._by_seed(group)
        results = [cell.run.read_results() or {} for cell in group]
        bits = [found["rate"]["bits_per_token"] for found in results]
        text = [row["f1"] for found in results for row in found["rows"] if row["row"] == "text"]
        average = {
            "settings": group[0].settings,
            "seeds": list(ours),
            "bits_per_token": sum(bits) / len(bits),
            "text_f1": sum(text) / len(text),
            "parameters": sum(results[0]["size"][part]["parameters"] for part in PARTS),
            **comparison.average(list(ours.values())),
        }
        if self.baseline is not None:
            settings = self.baseline.opposite(group[0].settings)
            theirs = self._by_seed([cell for cell in done if cell.settings == settings])
            average["compared"] = comparison.compared(ours, theirs)
        return average

    def _by_seed(self, cells: Sequence[Cell]) -> dict[int, Floats]:
        for cell in cells:
            if cell.name not in self._f1:
                self._f1[cell.name] = question_f1(cell.run, asked(cell.config))
        return {cell.seed: self._f1[cell.name] for cell in cells}

    def _comparison(self, cell: Cell) -> Comparison:
        config = cell.config
        # The sweep's first seed, whichever cell failed: for a single seed, the interval in results.json.
        key = (config.data.name, config.eval.limit, config.eval.resamples, self.cells[0].seed)
        if key not in self._comparisons:
            self._comparisons[key] = Comparison([q.context for q in asked(config)], *key[2:])
        return self._comparisons[key]


MARK = ".here-"
"""How the name of a file begins by which a machine knows that it sees the sweep's folder."""


@contextmanager
def _marked(folder: Path) -> Iterator[str]:
    """A file by which a machine knows that it sees this folder: its name."""
    mark = folder / f"{MARK}{uuid.uuid4().hex}"
    mark.touch()
    try:
        yield mark.name
    finally:
        mark.unlink(missing_ok=True)


def finished(run: Run, rows: Collection[str] = ()) -> bool:
    """Whether a run is evaluated, and was asked these rows.

    Raises:
        UsageError: it is damaged.
    """
    results = run.read_results() if run.trained else None
    if results is not None:
        run.read_answers("bottleneck")  # what the comparisons are made of
    # `linear` is asked only where the compressor knows an inverse.
    return results is not None and {*rows} - {"linear"} <= {row["row"] for row in results["rows"]}


def _table(record: dict[str, Any], folder: Path) -> Iterator[list[Any]]:
    """One line for each run in `folder`; how long things took is in this table alone."""
    yield [*record["axes"], "seed", "run", *COLUMNS, "error"]
    for cell in record["cells"]:
        settings = [format_setting(value) for value in cell["settings"].values()]
        numbers = [""] * len(COLUMNS)
        if cell["results"]:
            numbers = list(_numbers(cell["results"], Run(folder / cell["run"]).read_timings()))
        yield [*settings, cell["seed"], cell["run"], *numbers, cell["error"] or ""]


PARTS = ("compressor", "adapter")

TIMES = ("training_seconds", "encode_us_per_token", "decode_us_per_token")

COLUMNS = (
    *("f1", "f1_low", "f1_high", "exact_match", "text_f1", "no_context_f1", "bits_per_token", "recon"),
    *("token_recovery_seen", "token_recovery_unseen", "code_dim", "parameters", "bytes"),
    *TIMES,
)
"""Numbers of a run in sweep.csv; without a prefix, those of the row `bottleneck`."""


def _numbers(results: dict[str, Any], timings: dict[str, Any]) -> Iterator[Any]:
    rows = {row["row"]: row for row in results["rows"]}
    ours, size = rows["bottleneck"], results["size"]
    yield from (ours["f1"], *ours["f1_ci95"], ours["exact_match"])
    yield from (rows["text"]["f1"], rows["no_context"]["f1"], results["rate"]["bits_per_token"])
    reconstructed = results["reconstruction"] or {}  # none where the length changes
    for key in ("recon", "token_recovery_seen", "token_recovery_unseen"):
        yield reconstructed.get(key)
    yield size["code_dim"]
    for key in ("parameters", "bytes"):
        yield sum(size[part][key] for part in PARTS)
    for key in TIMES:
        yield timings.get(key)

"""A grid of runs with one command, and what came of it.

    FOLDER/ sweep.json  sweep.csv  <cell>/ (a run's folder)  …

The runs' folders are the state: a sweep that was interrupted is started again and goes on where it was.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stage1.config import format_setting
from stage1.errors import Stage1Error, UsageError
from stage1.evaluation.conditions import NEEDED
from stage1.evaluation.statistics import Comparison, Floats
from stage1.experiment import train_run
from stage1.files import write_atomic, write_record
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.sweeps.compare import asked, question_f1, same_questions
from stage1.sweeps.grid import Axis, Cell, groups, label


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
            if not same_questions([group[0].config, other.config]):
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
        folder: where sweep.json and sweep.csv go.
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

    def run(self, progress: Progress, *, all_rows: bool = False) -> None:
        """Train and evaluate one cell after the other; sweep.json and sweep.csv grow with each.

        An error of ours ends its cell alone. A cell that is finished is not run again, one that was begun
        goes on. Only the rows that a verdict needs are asked, unless `all_rows`.

        Raises:
            KeyboardInterrupt: the same call goes on.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"Cannot make the folder {self.folder}: {error.strerror}.", "Choose another --output."
            ) from None
        session = None
        for number, cell in enumerate(self.cells, 1):
            where = f"{number} of {len(self.cells)}: {cell.name}"
            try:
                if _finished(cell.run, all_rows):
                    progress.note(f"{where}: finished already.")
                    continue
                progress.note(where)
                rows = None if all_rows else NEEDED
                outcome = train_run(
                    cell.config, progress, resume=_begun(cell.run), rows=rows, session=session
                )
                session = outcome.session
            except Stage1Error as error:
                self.errors[cell.name] = str(error)
                progress.note(f"{cell.name} failed: {error}")
            except KeyboardInterrupt:
                raise KeyboardInterrupt("Resume with the same `stage1 sweep` command.") from None
            self.write()
        self.write()

    def write(self) -> None:
        """Replace sweep.json and sweep.csv by what is there now."""
        record = self.record()
        write_record(self.folder / "sweep.json", record)
        write_atomic(self.folder / "sweep.csv", _csv(record).encode())

    # -- what came of it ------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """The content of sweep.json: `cells` are the runs, `averages` over the seeds finished so far."""
        done = [cell for cell in self.cells if cell.name not in self.errors and self._is_done(cell)]
        names = {cell.name for cell in done}
        return {
            "schema": 1,
            "axes": {axis.key: axis.values for axis in self.axes},
            "seeds": list(dict.fromkeys(cell.seed for cell in self.cells)),
            "compare": self.baseline and {"axis": self.baseline.key, "value": self.baseline.value},
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
            return _finished(cell.run)
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
                self._f1[cell.name] = question_f1(cell.run, "bottleneck", asked(cell.config))
        return {cell.seed: self._f1[cell.name] for cell in cells}

    def _comparison(self, cell: Cell) -> Comparison:
        config = cell.config
        # The sweep's first seed, whichever cell failed: for a single seed, the interval in results.json.
        key = (config.data.name, config.eval.limit, config.eval.resamples, self.cells[0].seed)
        if key not in self._comparisons:
            self._comparisons[key] = Comparison([q.context for q in asked(config)], *key[2:])
        return self._comparisons[key]


def _begun(run: Run) -> Run | None:
    return Run.open(run.path) if (run.path / "config.yaml").exists() else None


def _finished(run: Run, all_rows: bool = False) -> bool:
    results = run.read_results() if run.trained else None
    if results is not None:
        run.read_answers("bottleneck")  # what the comparisons are made of
    # `mean` is asked in every whole evaluation, `linear` only where the compressor knows an inverse.
    return results is not None and (not all_rows or "mean" in {row["row"] for row in results["rows"]})


def _csv(record: dict[str, Any]) -> str:
    """One line for each run."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([*record["axes"], "seed", "run", *COLUMNS, "error"])
    for cell in record["cells"]:
        settings = [format_setting(value) for value in cell["settings"].values()]
        numbers = list(_numbers(cell["results"])) if cell["results"] else [""] * len(COLUMNS)
        lines.writerow([*settings, cell["seed"], cell["run"], *numbers, cell["error"] or ""])
    return text.getvalue()


COLUMNS = ("f1", "f1_low", "f1_high", "exact_match", "text_f1", "no_context_f1", "bits_per_token", "recon")
"""Numbers of a run in sweep.csv; without a prefix, those of the row `bottleneck`."""


def _numbers(results: dict[str, Any]) -> Iterator[Any]:
    rows = {row["row"]: row for row in results["rows"]}
    ours, reconstructed = rows["bottleneck"], results["reconstruction"]
    yield from (ours["f1"], *ours["f1_ci95"], ours["exact_match"])
    yield from (rows["text"]["f1"], rows["no_context"]["f1"], results["rate"]["bits_per_token"])
    yield "" if reconstructed is None else reconstructed["recon"]

"""How progress and results look: bars on a terminal, plain lines elsewhere, nothing under --quiet.

Progress goes to standard error, so that standard output holds the result alone.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from stage1.cli import options
from stage1.cli.console import make_console, print_fitting, print_report, say
from stage1.progress import Advance, Progress
from stage1.reports import commands, report
from stage1.reports.svg import Series
from stage1.text import visible

if TYPE_CHECKING:  # it loads transformers, which checking a plugin need not wait for
    from stage1.experiment import Outcome


WORTH_A_WORD = 0.02
"""Share of the time from which a piece of work is named."""


def show_outcome(outcome: "Outcome", *, json: bool, quiet: bool) -> None:
    """The closing word of `train` and `eval`: JSON alone, or the table and what to type next."""
    run, evaluation = outcome.run, outcome.evaluation
    if json:
        shown = evaluation.results if evaluation else {"selection": run.best_selection() or None}
        options.print_json({"run": str(run.path), **shown, "timings": dict(outcome.timings)})
        return
    console = make_console()
    results = evaluation.results if evaluation else None
    if results is not None:
        print_report(console, report.tables(results), report.summary(results))
        if not quiet:
            say(console, report.timings(outcome.timings))
            say(console, _times(outcome.session.progress))
    else:
        best = run.best_selection()
        score = f"selection score {best['selection']['score']:.4f} at step {best['step']}" if best else ""
        console.print(f"Trained; {score or 'there is no log of how well'}.")
    console.print(f"\nRun: {run.path}", soft_wrap=True)
    if outcome.kept not in (None, run.path):
        console.print(f"Results: {outcome.kept}", soft_wrap=True)
    if quiet:
        return
    console.print("Next:")
    for command in commands.next_commands(run, results):
        console.print(f"  {command}", soft_wrap=True)


def show_curves(curves: Mapping[str, Sequence[Series]]) -> None:
    """Curves of trainings, drawn in the terminal."""
    import plotille

    console = make_console()
    for title, series in curves.items():
        points = [point for one in series for point in one.points]
        drawing = plotille.Figure()
        drawing.width, drawing.height = max(20, min(console.width, 120) - 30), 12
        drawing.x_label, drawing.y_label, drawing.origin = "step", "value", False
        drawing.with_colors = console.is_terminal
        drawing.set_x_limits(min(point.x for point in points), max(point.x for point in points))
        drawing.register_label_formatter(float, lambda value, chars, delta, left: f"{value:.3g}".ljust(chars))
        for one in series:
            xs, ys = [point.x for point in one.points], [point.y for point in one.points]
            drawing.plot(xs, ys, label=visible(one.name))
        console.print(f"\n{title}")
        console.print(Text.from_ansi(drawing.show(legend=True)), soft_wrap=True)


TOO_LOSSY = 3
"""Exit code where the bottleneck keeps less than `--fail-below` asks for."""


def end_by(outcome: "Outcome", fail_below: float | None) -> None:
    """End the program otherwise than with 0 where results cannot be trusted or fall short."""
    if outcome.evaluation is None:
        return
    verdict = outcome.evaluation.results["verdict"]
    if verdict["level"] == "protocol broken":
        raise typer.Exit(1)
    if fail_below is not None and (verdict["ratio"] is None or verdict["ratio"] < fail_below):
        raise typer.Exit(TOO_LOSSY)


def _times(progress: Progress) -> str:
    """Where the time went."""
    seconds, shares = progress.shares()
    named = [f"{label} {100 * share:.0f} %" for label, share in shares.items() if share >= WORTH_A_WORD]
    return f"Time   {seconds:.0f} s: {', '.join(named)}"


def show_tasks(results: Mapping[str, Any], run: Path, *, json: bool, quiet: bool) -> None:
    """The closing word of `eval --tasks`: JSON alone, or the table and where the samples are."""
    if json:
        options.print_json({"run": str(run), **results})
        return
    console = make_console()
    print_report(console, report.tasks_tables(results), report.tasks_summary(results))
    console.print(f"\nRun: {run}", soft_wrap=True)
    if not quiet:
        console.print(f"Samples: {run / 'tasks'}", soft_wrap=True)


def show_sweep(record: Mapping[str, Any], file: Path, *, json: bool) -> None:
    """The closing word of `sweep`: JSON alone, or a line for each cell and what failed."""
    if json:
        options.print_json(record)
        return
    console = make_console()
    print_fitting(console, report.sweep_tables(record))
    failed = [cell for cell in record["cells"] if cell["error"]]
    if failed:
        console.print(f"\n{len(failed)} of {len(record['cells'])} runs failed:")
    for cell in failed:
        say(console, f"  {cell['run']}: {cell['error'].splitlines()[0]}")
    console.print(f"\nSweep: {file}", soft_wrap=True)


def show_diagnosis(diagnosis: Mapping[str, Any], *, json: bool) -> None:
    """JSON alone, or verdict, findings, stages and a prompt as the LLM may read it."""
    from stage1.diagnosis import show

    if json:
        options.print_json(diagnosis)
        return
    console = make_console()
    print_report(console, show.stages(diagnosis), show.numbers(diagnosis))
    console.print()
    if tokens := diagnosis["measured"]["tokens"]:
        console.print(
            "A prompt, over the nearest tokens of its reconstructed vectors where they differ:", style="dim"
        )
        for line in show.prompt(tokens["prompts"][0], min(console.width, 100)):
            console.print(line, soft_wrap=True)
        console.print()
    for line in show.findings(diagnosis):
        say(console, line)
    say(console, f"Diagnosis: {show.verdict(diagnosis)}")


SLOW = 1.0
"""Seconds after which finished work is worth a line where there is no terminal."""


def make_progress(*, quiet: bool) -> Progress:
    """What the core reports to."""
    console = make_console(stderr=True)
    if quiet:
        return Progress()
    return BarProgress(console) if console.is_terminal else LineProgress(console)


class LineProgress(Progress):
    """One line for each piece of work, when it is done."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    @contextmanager
    def shown(self, label: str, total: int | None, unit: str) -> Iterator[Advance]:
        """See `Progress.shown`."""
        count, begun = 0, time.perf_counter()

        def advance(done: int) -> None:
            nonlocal count
            count += done

        yield advance
        seconds = time.perf_counter() - begun
        if seconds > SLOW:
            rate = f", {count} {unit} ({count / seconds:.0f}/s)" if total and unit else ""
            self.console.print(f"{label}: {seconds:.1f} s{rate}")

    def note(self, message: str) -> None:
        """See `Progress.note`."""
        self.console.print(message, soft_wrap=True)


class BarProgress(Progress):
    """A bar with its rate for each piece of work."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self.bars: Bars | None = None

    @contextmanager
    def shown(self, label: str, total: int | None, unit: str) -> Iterator[Advance]:
        """See `Progress.shown`."""
        with self._live() as bars:
            number = bars.add_task(label, total=total, unit=unit)
            yield lambda done: bars.advance(number, done)
            count = bars.tasks[bars.task_ids.index(number)].completed
            bars.update(number, total=total or 1, completed=count if total else 1)
            bars.stop_task(number)

    @contextmanager
    def _live(self) -> Iterator[Bars]:
        """One live display, also for work inside work."""
        if self.bars is not None:
            yield self.bars
            return
        columns = (
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", markup=False),
            _Optional(BarColumn()),
            _Optional(MofNCompleteColumn()),
            TextColumn("{task.fields[unit]}"),
            _Rate(),
            TimeElapsedColumn(),
            _Optional(TimeRemainingColumn(elapsed_when_finished=False)),
        )
        with Bars(*columns, console=self.console) as self.bars:
            try:
                yield self.bars
            finally:
                self.bars = None

    def note(self, message: str) -> None:
        """See `Progress.note`."""
        say(self.console, f"• {message}")


class _Optional(ProgressColumn):
    """A column only for work whose amount is known."""

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__()
        self.column = column

    def render(self, task: Task) -> Text:
        """The wrapped column's text, or nothing."""
        return self.column(task) if task.fields["unit"] else Text("")  # type: ignore[return-value]


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Units per second."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.0f}/s" if speed and task.fields["unit"] else "")

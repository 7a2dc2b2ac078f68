"""`stage1 train`."""

from pathlib import Path
from typing import Annotated

import typer

from stage1.cli import groups, options
from stage1.processes import is_first


@groups.grouped
def train(
    chosen: options.SeededRunOptions,
    *,
    output: Annotated[
        Path | None, typer.Option(help="Run directory; default: a new one under runs/.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in --output, or the newest unfinished run.")
    ] = False,
    no_eval: Annotated[
        bool,
        typer.Option("--no-eval", help="Train without evaluating; needs only the LLM's embedding table."),
    ] = False,
    rows: options.Rows = None,
    fail_below: options.FailBelow = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the curves of the training, too.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a bottleneck and measure how much of the LLM's F1 survives it.

    With no options: PCA to an eighth of the width and a residual adapter, on the embedded tiny Llama.
    """
    config = chosen.configuration(output=output) if not resume else None
    if config is not None:
        # What is wrong with settings and plugins is said before the seconds that transformers takes to load.
        from stage1.plugins import load_plugins, resolve

        resolve(config, load_plugins())
    from stage1.cli.display import end_by, make_progress, show_curves, show_outcome
    from stage1.experiment import resume_run, train_run
    from stage1.reports.figures import curves
    from stage1.runs.run import Run

    run = None
    if config is None:
        run = Run.open(output) if output else Run.latest()
        config = resume_run(run, chosen.configuration(run.settings, output=run.path))
    progress = make_progress(quiet=quiet or not is_first())
    asked = options.rows_asked(rows)
    outcome = train_run(config, progress, resume=run, with_evaluation=not no_eval, rows=asked)
    if is_first():
        show_outcome(outcome, json=json, quiet=quiet)
        if plot and not json:
            show_curves(curves(outcome.run.metrics()))
        end_by(outcome, fail_below)

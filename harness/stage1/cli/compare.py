"""`stage1 compare`: finished runs against each other."""

from pathlib import Path
from typing import Annotated

import typer

from stage1.cli import options
from stage1.errors import UsageError


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN …", help="Folders of evaluated runs, two at least.")
    ],
    by: Annotated[
        str | None,
        typer.Option(metavar="seed", help="seed: runs that differ in their seed alone are one setting."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Compare runs of other data, protocols or models, naming what differs."),
    ] = False,
    number: Annotated[int, typer.Option("-n", min=0, help="Flipped questions shown of each pair.")] = 5,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Show their prompts as either bottleneck reconstructs them.")
    ] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the curves of their trainings, too.")] = False,
    trust_remote_code: options.TrustRemoteCode = None,
    json: options.Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="A line for each pair and metric.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Tables for a paper.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare runs, paired on the questions that all were asked: F1, exact match, bits, and what flipped.

    Differences have 95 % intervals and p-values clustered by passage, corrected for their number (Holm).
    """
    if by not in (None, "seed"):
        raise UsageError(f"--by {by!r} is not known.", "Write --by seed.")
    if json + csv + latex > 1:
        raise UsageError("--json, --csv and --latex are different outputs.", "Choose one.")
    from stage1.cli.display import make_progress, show_curves
    from stage1.cli.inspected import show_compared
    from stage1.files import to_csv
    from stage1.inspection.compare import compare_runs, with_prompts
    from stage1.reports import comparison
    from stage1.reports.figures import side_by_side
    from stage1.runs.run import Run

    compared = compare_runs(runs, by_seed=by == "seed", force=force)
    if prompts:
        progress = make_progress(quiet=quiet)
        compared = with_prompts(compared, number, progress, trust_remote_code=bool(trust_remote_code))
    record = compared.model_dump(mode="json")
    if json:
        options.print_json(record)
    elif csv or latex:
        typer.echo(to_csv(comparison.table(record)) if csv else comparison.to_latex(record), nl=False)
    else:
        show_compared(record, number)
        if plot:
            show_curves(side_by_side({str(run): Run.open(run).metrics() for run in runs}))

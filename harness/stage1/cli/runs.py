"""`stage1 runs` and `stage1 verify`: what lies in folders, and whether it holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from stage1.cli import groups, options


def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="Where they lie, sweeps included.")
    ] = Path("runs"),
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Only runs of which this holds: compressor=pca, verdict!=undecided, 'f1>80', or any other "
            "setting; may be repeated.",
        ),
    ] = None,
    sort: Annotated[
        str, typer.Option(metavar="KEY", help="date, f1, share, bits_per_token, model, … or a setting.")
    ] = "date",
    reverse: Annotated[
        bool, typer.Option("--reverse", "-r", help="The smallest first; texts from Z to A.")
    ] = False,
    json: options.Json = False,
) -> None:
    """List runs, the newest first: date, model, protocol, method, rate, F1, share of the text F1, verdict."""
    from stage1.cli.inspected import show_runs
    from stage1.inspection.listing import list_runs

    found = [
        run.model_dump(mode="json")
        for run in list_runs(folder, where=where or (), sort=sort, reverse=reverse)
    ]
    if json:
        options.print_json(found)
    else:
        show_runs(found, folder)


@dataclass(frozen=True)
class Here(groups.Options):
    """Where things lie on this machine."""

    model: options.ModelHere = None
    trust_remote_code: options.TrustRemoteCode = None
    data: options.Data = None


@groups.grouped
def verify(
    run: options.RunFolder,
    here: Here,
    *,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check that a run's results follow from its answers, and that data, model and plugins are the run's.

    Ends with 1 when something does not hold. No model is downloaded, and no LLM is asked: what only that
    could tell is named.
    """
    from stage1.cli.display import make_progress
    from stage1.cli.inspected import show_verified
    from stage1.inspection.verify import verify_run

    verified = verify_run(run, here.given(), make_progress(quiet=quiet))
    if json:
        options.print_json({**verified.model_dump(mode="json"), "holds": verified.holds})
    else:
        show_verified(verified)
    if not verified.holds:
        raise typer.Exit(1)

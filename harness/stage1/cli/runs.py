"""`stage1 runs`, `verify`, `show`, `compare`, `report` and `push`: what is done with finished runs."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stage1.cli import groups, options
from stage1.errors import UsageError
from stage1.text import visible

if TYPE_CHECKING:
    from stage1.inspection.questions import Kind


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


FEW = 10
"""Questions that are shown where nothing else is said."""


def show(
    run: options.RunFolder,
    lost: Annotated[
        bool, typer.Option("--lost", help="The text is answered rightly, the bottleneck not.")
    ] = False,
    gained: Annotated[bool, typer.Option("--gained", help="The bottleneck is right, the text not.")] = False,
    wrong: Annotated[bool, typer.Option("--wrong", help="The bottleneck is wrong.")] = False,
    search: Annotated[
        str, typer.Option(metavar="TEXT", help="TEXT stands in the question, a gold answer or an answer.")
    ] = "",
    number: Annotated[
        int | None, typer.Option("-n", min=1, help=f"Questions at most; default: {FEW}, with --json all.")
    ] = None,
    prompts: Annotated[
        bool,
        typer.Option("--prompts", help="Also the prompt over its reconstruction; needs the model's table."),
    ] = False,
    trust_remote_code: options.TrustRemoteCode = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show questions with their gold answers and every row's answer; several filters show what any does.

    Right is an answer that is one of the gold ones, up to case, articles and punctuation (exact match).
    """
    from stage1.cli.display import make_progress
    from stage1.cli.inspected import show_questions
    from stage1.inspection.questions import evaluated, questions

    wanted: dict[Kind, bool] = {"lost": lost, "gained": gained, "wrong": wrong}
    kinds = [kind for kind, given in wanted.items() if given]
    opened, results = evaluated(run)
    found = list(questions(opened, results, kinds, search))
    shown = list(islice(found, number if json else number or FEW))
    if prompts:
        from stage1.inspection.reading import read_prompts

        ids, progress = {asked.id for asked in shown}, make_progress(quiet=quiet)
        [read] = read_prompts([(opened, ids)], progress, trust_remote_code=bool(trust_remote_code))
        shown = [asked.model_copy(update={"prompt": read.get(asked.id)}) for asked in shown]
    if json:
        options.print_json([asked.model_dump(mode="json") for asked in shown])
    else:
        show_questions(shown, len(found), results["questions"]["n"])


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


def report(
    places: Annotated[
        list[Path],
        typer.Argument(metavar="RUN|SWEEP|FRONTIER …", help="The folder of one, or those of several runs."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The HTML file; it is replaced.")
    ] = Path("report.html"),
    quiet: options.Quiet = False,
) -> None:
    """Write a report as one HTML file, to read and to send: it needs no network and no other file.

    Of a run: verdict, rows, where F1 goes, bits, curves, diagnosis, and every question with its answers and
    its prompt over the reconstruction. Of several: F1 against bits, and the runs side by side.
    """
    from stage1.cli.display import make_progress
    from stage1.sweeps.report import write_report

    typer.echo(visible(f"Report: {write_report(places, output, make_progress(quiet=quiet))}"))


def push(
    run: options.RunFolder,
    repo_id: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="Hub repository, as in me/my-bottleneck.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Upload nothing: print the model card and list the files.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --dry-run: write the model card to this file.")
    ] = None,
) -> None:
    """Publish a trained run on the Hugging Face Hub, with a generated model card.

    Local paths, predictions and whatever else quotes the data are not uploaded.
    """
    if output and not dry_run:
        raise UsageError("--output does nothing without --dry-run.", "Add --dry-run, which uploads nothing.")
    from stage1.files import write_atomic
    from stage1.reports import publish
    from stage1.runs.run import Run

    opened = Run.open(run)
    if not dry_run:
        typer.echo(publish.push(opened, repo_id, private=private))
        return
    files = publish.published(opened, repo_id)
    if output:
        write_atomic(output, files["README.md"])
    else:
        typer.echo(files["README.md"].decode())
    typer.echo(f"Nothing is uploaded. To {visible(repo_id)} would go:", err=True)
    for name, content in files.items():
        typer.echo(f"  {name}  {len(content):,} bytes", err=True)

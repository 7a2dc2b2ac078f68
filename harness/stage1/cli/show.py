"""`stage1 show`: the questions of a run and how each row answered them."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from stage1.cli import options

if TYPE_CHECKING:
    from stage1.inspection.questions import Kind

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

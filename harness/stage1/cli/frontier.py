"""`stage1 frontier`."""

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from stage1.cli import groups, options
from stage1.errors import UsageError


@groups.grouped
def frontier(
    chosen: options.SeededRunOptions,
    *,
    keep: Annotated[
        float, typer.Option(metavar="SHARE", min=0.01, max=1, help="Share of the text F1 to keep.")
    ] = 0.95,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2,…",
            help="What methods differ in, as in `sweep`: `compressor=pca,learned_linear`; may be repeated: "
            "every combination is a method. Default: one method, that of `train`.",
        ),
    ] = None,
    axis: Annotated[
        str, typer.Option(metavar="bits|ratio", help="What is to be small (bits) or large (ratio).")
    ] = "bits",
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES", min=0, help="Begin nothing that will not fit; the same command goes on."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where runs and results go; default: one under runs/."),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the smallest rate at which a bottleneck keeps a share of the text F1, and with which method.

    Bisection over the rate, successive halving of the methods, few questions where a setting is hopeless.
    Selection questions choose; test questions confirm. The same command goes on where it was stopped.
    """
    if axis not in ("bits", "ratio"):
        raise UsageError(f"--axis {axis!r} is neither bits nor ratio.", "Write --axis bits or --axis ratio.")
    from stage1.cli.console import make_console, print_report
    from stage1.cli.display import make_progress
    from stage1.reports import frontier as report
    from stage1.sweeps.frontier import Explorer, Request
    from stage1.sweeps.grid import Axis

    axes, flags = [Axis.parse(text) for text in over or []], {**chosen.given(), **chosen.presets()}
    seed = flags.pop("seed", 0)
    measured = cast("Literal['bits', 'ratio']", axis)
    tree, settings = chosen.tree(), chosen.settings or []
    request = Request(output, tree, flags, settings, axes, keep, measured, budget, seed)
    found = Explorer(request, make_progress(quiet=quiet)).run()
    if json:
        options.print_json(found.model_dump(mode="json"))
        return
    console = make_console()
    print_report(console, report.tables(found), report.summary(found))
    console.print(f"\nFrontier: {request.place}", markup=False, soft_wrap=True)

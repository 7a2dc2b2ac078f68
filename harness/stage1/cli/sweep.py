"""`stage1 sweep` and `stage1 frontier`: many runs."""

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from stage1.cli import completion, groups, options
from stage1.errors import UsageError


@groups.grouped
def sweep(
    chosen: options.RunOptions,
    *,
    over: Annotated[
        list[str],
        typer.Option(
            metavar="KEY=V1,V2,…",
            help="A setting, as --set takes it, and its values, or `recipe` and recipes; may be repeated.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where the runs go; the same one resumes a sweep.")
    ],
    seeds: Annotated[str, typer.Option(metavar="S1,S2,…", help="Every cell is run with each.")] = "0",
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A value of an --over: adds the paired difference to the cell that has this value instead.",
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Runs at a time, each in a process of its own.")
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[://ADDRESS]",
            autocompletion=completion.plugin("executor"),
            help="Where the runs are carried out: `local`, `ray`, `slurm` or a plugin's. Default: here.",
        ),
    ] = None,
    on_set: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of --on, such as minutes=240; may be repeated."),
    ] = None,
    rows: options.Rows = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train and evaluate every combination of some settings' values, for several seeds.

    Every combination is checked before the first is trained. Finished runs are kept.
    """
    try:
        numbers = [int(part) for part in seeds.split(",")]
    except ValueError:
        raise UsageError(f"--seeds {seeds!r} are not whole numbers.", "Write, for example, 0,1,2.") from None
    from stage1.cli.display import make_progress, show_sweep
    from stage1.config import parse_setting
    from stage1.evaluation.conditions import NEEDED
    from stage1.experiment import require_trackers
    from stage1.sweeps.grid import Axis, plan
    from stage1.sweeps.sweep import Baseline, Sweep
    from stage1.sweeps.worker import executor

    asked = options.rows_asked(rows) or NEEDED
    axes = [Axis.parse(text) for text in over]
    flags = {**chosen.given(), **chosen.presets()}
    cells = plan(chosen.tree(), chosen.settings or [], axes, numbers, output, flags=flags)
    for cell in cells:
        require_trackers(cell.config)
    baseline = Baseline.parse(compare, cells) if compare else None
    grid = Sweep(output, axes, cells, baseline)
    given = {".".join(path): value for path, value in map(parse_setting, on_set or [])}
    place = executor(on, jobs, given)
    grid.run(make_progress(quiet=quiet), place, asked)
    show_sweep(grid.record(), grid.file, json=json)
    if grid.errors:
        raise typer.Exit(1)


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
        str, completion.one_of("bits|ratio", "What is to be small (bits) or large (ratio).")
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
    console.print(f"\nFrontier: {request.place}", soft_wrap=True)

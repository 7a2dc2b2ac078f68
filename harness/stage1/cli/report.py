"""`stage1 report`."""

from pathlib import Path
from typing import Annotated

import typer

from stage1.cli import options
from stage1.text import visible


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

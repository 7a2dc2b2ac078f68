"""`stage1 diagnose`: why F1 is what it is."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from stage1.cli import groups, options
from stage1.errors import UsageError


@dataclass(frozen=True)
class Diagnosed(options.Protocol, options.BottleneckParts, options.ModelAndData):
    """What is diagnosed."""

    limit: Annotated[int, typer.Option(min=1, help="Test questions asked, spread over passages.")] = 200


@groups.grouped
def diagnose(
    chosen: Diagnosed,
    *,
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="The folder that `stage1 train` made.")
    ] = None,
    settings: options.Settings = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the diagnosis to this file.")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Explain the F1: findings by how many points they explain, with evidence and the command to try next.

    On a trained RUN, whose folder gets `diagnosis.json`; without one, on the untrained bottleneck that the
    options describe.
    """
    parts = [f"--{field.name}" for field in fields(options.BottleneckParts) if getattr(chosen, field.name)]
    if run is not None and (parts or settings):
        raise UsageError(
            f"{run} has its own compressor, adapter and settings.",
            f"Leave out {', '.join([*parts, *(['--set'] if settings else [])])}, or leave out RUN for an "
            "untrained bottleneck.",
        )
    from stage1.config import granted, overlay

    opened = None
    if run is not None:
        from stage1.runs.run import Run

        opened = Run.open(run)
    base = overlay(opened.settings if opened else {}, chosen.preset())
    config = granted(base, chosen.given(), settings or [])
    from stage1.cli.display import make_progress, show_diagnosis
    from stage1.diagnosis.diagnose import diagnose_run, diagnose_untrained
    from stage1.files import write_json

    progress = make_progress(quiet=quiet)
    if opened is None:
        diagnosis = diagnose_untrained(config, chosen.limit, progress)
    else:
        diagnosis = diagnose_run(opened, config, chosen.limit, progress)
    if output:
        write_json(output, diagnosis)
    show_diagnosis(diagnosis, json=json)

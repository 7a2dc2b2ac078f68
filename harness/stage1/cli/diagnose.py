"""`stage1 diagnose`: why F1 is what it is."""

from pathlib import Path
from typing import Annotated

import typer

from stage1.cli import options
from stage1.errors import UsageError


def diagnose(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="The folder that `stage1 train` made.")
    ] = None,
    model: options.Model = None,
    trust_remote_code: options.TrustRemoteCode = None,
    data: options.Data = None,
    compressor: options.CompressorNames = None,
    adapter: options.AdapterName = None,
    protocol: options.Protocol = None,
    shots: options.Shots = None,
    chat: options.Chat = None,
    template: options.Template = None,
    magnitude: options.Magnitude = None,
    scope: options.Scope = None,
    raw_anchor: options.RawAnchor = None,
    keep_special: options.KeepSpecial = None,
    device: options.Device = None,
    settings: options.Settings = None,
    limit: Annotated[int, typer.Option(min=1, help="Test questions asked, spread over passages.")] = 200,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the diagnosis to this file.")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Say why F1 is what it is: findings by how much of it they explain, with evidence and a next command.

    On a trained RUN, whose folder gets `diagnosis.json`; without one, on what the options name before any
    training.
    """
    flags = options.flags_given(
        compressors=compressor,
        model__name=model,
        model__trust_remote_code=trust_remote_code,
        data__name=data,
        adapter__name=adapter,
        magnitude=magnitude,
        scope=scope,
        raw_anchor=raw_anchor,
        keep_special=keep_special,
        device=device,
        **options.prompt_flags(shots, chat, template),
    )
    if run is not None and (compressor or adapter or settings):
        raise UsageError(
            f"{run} has its own compressor, adapter and settings.",
            "Leave out --compressor, --adapter and --set, or leave out RUN for an untrained bottleneck.",
        )
    opened = None
    if run is not None:
        from stage1.runs.run import Run

        opened = Run.open(run)
    base = opened.settings if opened else None
    config = options.configuration(None, flags, settings, base, protocol=protocol)
    from stage1.cli.display import make_progress, show_diagnosis
    from stage1.diagnosis.diagnose import diagnose_run, diagnose_untrained
    from stage1.files import write_json

    progress = make_progress(quiet=quiet)
    if opened is None:
        diagnosis = diagnose_untrained(config, limit, progress)
    else:
        diagnosis = diagnose_run(opened, config, limit, progress)
    if output:
        write_json(output, diagnosis)
    show_diagnosis(diagnosis, json=json)

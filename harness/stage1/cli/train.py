"""`stage1 train`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from stage1.cli import options


def train(
    config: options.ConfigFile = None,
    recipe: options.Recipe = None,
    model: options.Model = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = None,
    data: options.Data = None,
    strict: options.Strict = None,
    compressor: options.CompressorNames = None,
    ratio: options.Ratio = None,
    dim: options.Dim = None,
    adapter: options.AdapterName = None,
    loss: options.LossNames = None,
    protocol: options.Protocol = None,
    shots: options.Shots = None,
    chat: options.Chat = None,
    template: options.Template = None,
    magnitude: options.Magnitude = None,
    scope: options.Scope = None,
    raw_anchor: options.RawAnchor = None,
    keep_special: options.KeepSpecial = None,
    init: options.Init = None,
    steps: options.Steps = None,
    limit: options.Limit = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    log_with: options.LogWith = None,
    settings: options.Settings = None,
    output: Annotated[
        Path | None, typer.Option(help="Run directory; default: a new one under runs/.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --output, or the newest unfinished one.")
    ] = False,
    no_eval: Annotated[
        bool, typer.Option("--no-eval", help="Only train; of the LLM only its embedding table is needed.")
    ] = False,
    fail_below: options.FailBelow = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a bottleneck and measure how much of the LLM's F1 survives it.

    With no options: PCA to an eighth of the width and a residual adapter, on the embedded tiny Llama.
    """
    flags = options.flags_given(
        loss,
        compressor,
        model__name=model,
        model__revision=revision,
        model__trust_remote_code=trust_remote_code,
        data__name=data,
        data__strict=strict,
        adapter__name=adapter,
        magnitude=magnitude,
        scope=scope,
        raw_anchor=raw_anchor,
        keep_special=keep_special,
        compressor__ratio=ratio,
        compressor__dim=dim,
        init=str(init) if init else None,
        train__steps=steps,
        eval__limit=limit,
        eval__batch_size=options.batch_size(batch_size),
        seed=seed,
        device=device,
        dtype=dtype,
        log_with=log_with or None,
        output=str(output) if output else None,
        **options.prompt_flags(shots, chat, template),
    )
    if not resume:
        # What is wrong with settings and plugins is said before the seconds that transformers takes to load.
        base = options.inherited(init) if init else {}
        chosen = options.configuration(config, flags, settings, base, recipe=recipe, protocol=protocol)
        from stage1.plugins import load_plugins, resolve

        resolve(chosen, load_plugins())
    from stage1.cli.display import end_by, make_progress, show_outcome
    from stage1.experiment import resume_run, train_run
    from stage1.runs.run import Run

    helper = os.environ.get("LOCAL_RANK", "0") != "0"  # of `accelerate launch`: the first process speaks
    run = None
    if resume:
        run = Run.open(output) if output else Run.latest()
        flags["output"] = str(run.path)
        base = run.settings
        chosen = resume_run(
            run, options.configuration(config, flags, settings, base, recipe=recipe, protocol=protocol)
        )
    progress = make_progress(quiet=quiet or helper)
    outcome = train_run(chosen, progress, resume=run, with_evaluation=not no_eval)
    if not helper:
        show_outcome(outcome, json=json, quiet=quiet)
        end_by(outcome, fail_below)

"""Every hook on one page. A plugin implements one with `@stage1.hookimpl` in a module named by an entry
point of group `stage1`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pluggy import HookspecMarker

if TYPE_CHECKING:  # `stage1 --help` must not load torch
    from pathlib import Path

    from typer import Typer

    from stage1.config import RunConfig
    from stage1.plugins.executors import Executor
    from stage1.plugins.interfaces import Adapter, Compressor, Dataset, Loss, Model
    from stage1.plugins.trackers import Tracker

hookspec = HookspecMarker("stage1")


@hookspec
def stage1_compressors() -> type[Compressor] | list[type[Compressor]]:  # type: ignore[empty-body]
    """Return a compressor class, or a list of them."""


@hookspec
def stage1_adapters() -> type[Adapter] | list[type[Adapter]]:  # type: ignore[empty-body]
    """Return an adapter class, or a list of them."""


@hookspec
def stage1_losses() -> type[Loss] | list[type[Loss]]:  # type: ignore[empty-body]
    """Return a loss class, or a list of them."""


@hookspec
def stage1_datasets() -> type[Dataset] | list[type[Dataset]]:  # type: ignore[empty-body]
    """Return a data set's class, or a list of them."""


@hookspec
def stage1_models() -> type[Model] | list[type[Model]]:  # type: ignore[empty-body]
    """Return a class that says where a model lies, or a list of them."""


@hookspec
def stage1_trackers() -> type[Tracker] | list[type[Tracker]]:  # type: ignore[empty-body]
    """Return an experiment tracker's class, or a list of them."""


@hookspec
def stage1_executors() -> type[Executor] | list[type[Executor]]:  # type: ignore[empty-body]
    """Return a class that carries out the runs of a sweep, or a list of them."""


@hookspec
def stage1_tasks() -> Path | list[Path]:  # type: ignore[empty-body]
    """Return a folder of lm-eval task files (YAML), or a list of them."""


@hookspec
def stage1_commands(app: Typer) -> None:
    """Add sub-commands to `app`: `stage1 NAME` runs them."""


@hookspec
def stage1_run_start(run: Path, config: RunConfig, step: int) -> None:
    """A run of `stage1 train` begins in the folder `run`, or is resumed there after `step` optimiser steps.

    The first of two phases is a run of its own in RUN/phase1, which begins and ends during the whole.
    """


@hookspec
def stage1_step(run: Path, step: int, metrics: dict[str, Any]) -> None:
    """The bottleneck was measured after `step` optimiser steps; `metrics` is what metrics.jsonl will say."""


@hookspec
def stage1_evaluated(run: Path, results: dict[str, Any]) -> None:
    """An evaluation ended, that of `stage1 train` or of `stage1 eval`; `results` are as in
    `results.json`, without its checksums.
    """


@hookspec
def stage1_run_end(run: Path, status: str) -> None:
    """A run ended, with its evaluation where one was asked for: "done", "interrupted" or "failed"."""

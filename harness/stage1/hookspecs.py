"""Every hook on one page. A plugin implements one with `@stage1.hookimpl` in a module named by an entry
point of group `stage1`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pluggy import HookspecMarker

if TYPE_CHECKING:  # `stage1 --help` must not load torch
    from pathlib import Path

    from stage1.config import RunConfig
    from stage1.interfaces import Adapter, Compressor, Loss

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
def stage1_run_start(run: Path, config: RunConfig) -> None:
    """A training run begins (or goes on) in the folder `run`."""


@hookspec
def stage1_step(run: Path, step: int, metrics: dict[str, Any]) -> None:
    """An entry was logged to `metrics.jsonl` after `step` optimiser steps."""


@hookspec
def stage1_evaluated(run: Path, results: dict[str, Any]) -> None:
    """An evaluation ended; `results` has the schema of `results.json`."""


@hookspec
def stage1_run_end(run: Path, status: str) -> None:
    """A training run ended: `status` is "done", "interrupted" or "failed"."""

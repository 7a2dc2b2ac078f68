"""Weights & Biases, through accelerate's tracker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stage1 import Tracker, hookimpl
from stage1_loggers.accelerated import Accelerated


class WeightsAndBiases(Accelerated):
    """Weights & Biases, in RUN/wandb.

    A resumed run ignores steps that are there already; offline, it is another recording of the same id.
    """

    name = "wandb"
    modules = ("wandb",)

    def start(self, run: Path, settings: Mapping[str, Any], step: int) -> None:
        from accelerate.tracking import WandBTracker

        before = next(run.glob("wandb/*/run-*.wandb"), None)
        self._tracker = WandBTracker(
            "stage1",
            name=run.name,
            group=run.resolve().parent.name,  # the sweep, or the run whose first phase this is
            dir=run,
            id=before and before.stem.removeprefix("run-"),
            resume=before and "allow",
            config=dict(settings),
            reinit="create_new",  # the whole run is tracked while its first phase is
            settings={"console": "off"},  # standard output belongs to the result
        )
        self._tracker.start()


@hookimpl
def stage1_trackers() -> type[Tracker]:
    return WeightsAndBiases

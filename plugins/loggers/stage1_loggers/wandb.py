"""Weights & Biases, through accelerate's tracker."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stage1 import Tracker, UsageError, hookimpl


class WeightsAndBiases(Tracker):
    """Weights & Biases, in RUN/wandb.

    A resumed run ignores steps that are there already; offline, it is another recording of the same id.
    """

    name = "wandb"

    @classmethod
    def require(cls) -> None:
        if not importlib.util.find_spec("wandb"):
            raise UsageError("--log-with wandb: not installed.", 'Install it: pip install "stage1[wandb]"')

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

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(numbers), step=step)

    def finish(self) -> None:
        self._tracker.finish()


@hookimpl
def stage1_trackers() -> type[Tracker]:
    return WeightsAndBiases

"""TensorBoard, through accelerate's tracker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stage1 import Tracker, hookimpl
from stage1_loggers.accelerated import Accelerated


class TensorBoard(Accelerated):
    """TensorBoard, in RUN/tensorboard.

    A resumed run drops the points beyond the step that it resumes from.
    """

    name = "tensorboard"
    modules = ("tensorboard", "tensorboardX")

    def start(self, run: Path, settings: Mapping[str, Any], step: int) -> None:
        from accelerate.tracking import TensorBoardTracker

        self._tracker = TensorBoardTracker("tensorboard", run, purge_step=step + 1 if step else 0)
        self._tracker.start()
        self._tracker.store_init_configuration(dict(settings))


@hookimpl
def stage1_trackers() -> type[Tracker]:
    return TensorBoard

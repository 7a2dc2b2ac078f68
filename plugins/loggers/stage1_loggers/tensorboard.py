"""TensorBoard, through accelerate's tracker."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stage1 import Tracker, UsageError, hookimpl


class TensorBoard(Tracker):
    """TensorBoard, in RUN/tensorboard.

    A resumed run drops the points beyond the step that it resumes from.
    """

    name = "tensorboard"

    @classmethod
    def require(cls) -> None:
        if not (importlib.util.find_spec("tensorboard") or importlib.util.find_spec("tensorboardX")):
            raise UsageError(
                "--log-with tensorboard: not installed.", 'Install it: pip install "stage1[tensorboard]"'
            )

    def start(self, run: Path, settings: Mapping[str, Any], step: int) -> None:
        from accelerate.tracking import TensorBoardTracker

        self._tracker = TensorBoardTracker("tensorboard", run, purge_step=step + 1 if step else 0)
        self._tracker.start()
        self._tracker.store_init_configuration(dict(settings))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(numbers), step=step)

    def finish(self) -> None:
        self._tracker.finish()


@hookimpl
def stage1_trackers() -> type[Tracker]:
    return TensorBoard

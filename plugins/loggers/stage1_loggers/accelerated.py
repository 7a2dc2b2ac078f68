"""What the trackers share that accelerate brings."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, ClassVar

from stage1 import Tracker, UsageError


class Accelerated(Tracker):
    """Hands the numbers on to accelerate's tracker, which `start` makes."""

    modules: ClassVar[tuple[str, ...]]
    """One of them must be installed."""
    _tracker: Any

    @classmethod
    def require(cls) -> None:
        if not any(map(importlib.util.find_spec, cls.modules)):
            raise UsageError(
                f"--log-with {cls.name}: not installed.", f'Install it: pip install "stage1[{cls.name}]"'
            )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(numbers), step=step)

    def finish(self) -> None:
        self._tracker.finish()

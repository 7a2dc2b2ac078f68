"""Experiment trackers, which a run is told to by name: `--log-with NAME`."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from stage1.config import RunConfig, flat


class Tracker(ABC):
    """Records a run's numbers where people compare runs. It is built without arguments, one for each run.

    What it raises stops neither the run nor another tracker. The first line of the docstring is what
    `stage1 plugins list` shows.
    """

    name: ClassVar[str]
    """What the user types: `--log-with NAME`."""

    @classmethod
    def require(cls) -> None:
        """Called before anything is loaded or written. Optional.

        Raises:
            UsageError: it cannot be used here, its package is not installed say; with the remedy.
        """
        return

    @abstractmethod
    def start(self, run: Path, settings: Mapping[str, Any], step: int) -> None:
        """The run in the folder `run` begins, or is resumed after `step` optimiser steps.

        `settings` is its configuration, flat: `compressors.0.name`, `train.lr`, …
        """

    @abstractmethod
    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Record numbers by names such as `selection/recon`, `eval/bottleneck/f1`."""

    def finish(self) -> None:
        """The run ended, whether it is done or not. Optional."""
        return


class Tracking:
    """The trackers of the runs that are in progress."""

    def __init__(self) -> None:
        self._running: dict[Path, dict[str, Tracker]] = {}
        self._steps: dict[Path, int] = {}  # the last one that was logged

    def told(
        self,
        event: str,
        facts: Mapping[str, Any],
        find: Callable[[Literal["tracker"], str], type[Tracker]],
    ) -> Iterator[tuple[str, Callable[[], None]]]:
        """What each tracker of a run, by its name, has to do at `event`.

        The evaluation that closes a run is logged at its last step; a later one, which no run begins, is not.
        """
        run = facts["run"]
        if event == "stage1_run_start":
            self._running[run], self._steps[run] = {}, facts["step"]
            settings = _settings(facts["config"])
            for name in dict.fromkeys(facts["config"].log_with):
                yield name, partial(self._start, run, name, find("tracker", name), settings, facts["step"])
        for name, tracker in self._running.get(run, {}).items():
            if event == "stage1_step":
                self._steps[run] = facts["step"]
                measured = {key: value for key, value in facts["metrics"].items() if key != "step"}
                yield name, partial(tracker.log, _numbers(measured), facts["step"])
            elif event == "stage1_evaluated":
                rows = {row["row"]: row for row in facts["results"]["rows"]}
                shown = {**rows, **{key: facts["results"][key] for key in ("rate", "reconstruction")}}
                yield name, partial(tracker.log, _numbers({"eval": shown}), self._steps[run])
            elif event == "stage1_run_end":
                yield name, tracker.finish
        if event == "stage1_run_end":
            self._running.pop(run, None)

    def _start(
        self, run: Path, name: str, cls: type[Tracker], settings: Mapping[str, Any], step: int
    ) -> None:
        tracker = cls()
        tracker.start(run, settings, step)
        self._running[run][name] = tracker


def _settings(config: RunConfig) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    tree["compressors"] = {str(place): choice for place, choice in enumerate(tree["compressors"])}
    leaves = flat(tree).items()
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in leaves}


def _numbers(tree: Mapping[str, Any]) -> dict[str, float]:
    leaves = flat(tree, "/").items()
    return {k: v for k, v in leaves if isinstance(v, int | float) and not isinstance(v, bool)}

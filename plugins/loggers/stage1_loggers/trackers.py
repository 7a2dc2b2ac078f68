"""TensorBoard and Weights & Biases, through accelerate's trackers: `--log-with`.

They write into RUN/tensorboard and RUN/wandb; the first of two phases has its own in RUN/phase1. A resumed
run goes on there: TensorBoard drops the points beyond the step that it goes on from, Weights & Biases
ignores steps that it has already (offline, what is resumed is a recording of its own with the same run id).
The evaluation that closes `stage1 train` is logged at the last step, those of `stage1 eval` are not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stage1 import hookimpl
from stage1.config import RunConfig, flat

if TYPE_CHECKING:  # accelerate is loaded by the runs that are tracked
    from accelerate.tracking import GeneralTracker


class Tracking:
    """The trackers of a run that is going on."""

    def __init__(self, run: Path, config: RunConfig, step: int) -> None:
        self.run, self.step = run, step
        self.trackers: list[GeneralTracker] = []
        tree = config.model_dump(mode="json")
        tree["compressors"] = {str(place): choice for place, choice in enumerate(tree["compressors"])}
        self.settings = {
            name: json.dumps(value) if isinstance(value, list) else value
            for name, value in flat(tree).items()
        }

    def start(self, name: str) -> None:
        self.trackers.append(self._tensorboard() if name == "tensorboard" else self._wandb())

    def _tensorboard(self) -> GeneralTracker:
        from accelerate.tracking import TensorBoardTracker

        purge = self.step + 1 if self.step else 0
        tracker = TensorBoardTracker("tensorboard", self.run, purge_step=purge)
        tracker.start()
        tracker.store_init_configuration(self.settings)
        return tracker

    def _wandb(self) -> GeneralTracker:
        from accelerate.tracking import WandBTracker

        before = next(self.run.glob("wandb/*/run-*.wandb"), None)
        tracker = WandBTracker(
            "stage1",
            name=self.run.name,
            group=self.run.resolve().parent.name,  # the sweep, or the run whose first phase this is
            dir=self.run,
            id=before and before.stem.removeprefix("run-"),
            resume=before and "allow",
            config=self.settings,
            reinit="create_new",  # the whole run is tracked while its first phase is
            settings={"console": "off"},  # standard output belongs to the result
        )
        tracker.start()
        return tracker

    def log(self, step: int, tree: Mapping[str, Any]) -> None:
        """Log the numbers in `tree`, under names such as `terms/recon/value`."""
        self.step = step
        leaves = flat(tree, "/").items()
        numbers = {k: v for k, v in leaves if isinstance(v, int | float) and not isinstance(v, bool)}
        _all(partial(tracker.log, numbers, step=step) for tracker in self.trackers)

    def finish(self) -> None:
        _all(tracker.finish for tracker in self.trackers)


_going_on: dict[Path, Tracking] = {}


@hookimpl
def stage1_run_start(run: Path, config: RunConfig, step: int) -> None:
    if config.log_with:
        tracking = _going_on[run] = Tracking(run, config, step)
        _all(partial(tracking.start, name) for name in dict.fromkeys(config.log_with))


@hookimpl
def stage1_step(run: Path, step: int, metrics: dict[str, Any]) -> None:
    if run in _going_on:
        _going_on[run].log(step, {name: value for name, value in metrics.items() if name != "step"})


@hookimpl
def stage1_evaluated(run: Path, results: dict[str, Any]) -> None:
    if run in _going_on:
        rows = {row["row"]: row for row in results["rows"]}
        numbers = {"rate": results["rate"], "reconstruction": results["reconstruction"]}
        _going_on[run].log(_going_on[run].step, {"eval": {**rows, **numbers}})


@hookimpl
def stage1_run_end(run: Path) -> None:
    if run in _going_on:
        _going_on.pop(run).finish()


def _all(actions: Iterable[Callable[[], object]]) -> None:
    """Do them all, whatever becomes of one; then raise what the first that failed raised."""
    failed = []
    for action in actions:
        try:
            action()
        except Exception as error:
            failed.append(error)
    if failed:
        raise failed[0]

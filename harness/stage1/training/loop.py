"""The training loop: step, measure, save, until it has converged or the steps or the patience run out.

What step *k* does follows from the configuration and the state after step *k − 1* alone, so a run that was
killed and resumed ends with the same weights, bit for bit. In the state everything stands under a name: a
parameter that is not trained any more cannot take another one's place.
"""

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast
from torch import Tensor

from stage1.errors import TrainingError
from stage1.plugins import load_plugins
from stage1.processes import is_first
from stage1.runs.run import Run
from stage1.training.course import Course
from stage1.training.schedule import Mean, is_check, is_trial
from stage1.training.step import NotFiniteError, NothingToTrainError, Stepper

if TYPE_CHECKING:
    from stage1.training.trainer import Trainer


class Loop:
    """One training of a bottleneck that has been started, or is restored from what the run had saved.

    Args:
        trainer: what is trained, on what.
        run: the folder.
        state: what `State.load` found there; None: the training is new.

    Attributes:
        course: where the training stands.
        stepper: makes the steps.
        mean: of the weights, which is what is measured until the training has converged; None: they are.
    """

    def __init__(
        self, trainer: "Trainer", run: Run, state: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None
    ) -> None:
        self.trainer, self.run, self.config = trainer, run, trainer.config.train
        if state is not None:  # before the optimiser is given what is trained
            tensors, facts = state
            trainer.bottleneck.load_state_dict(_part(tensors, "now."))
            trainer.bottleneck.freeze(facts["frozen"])
            trainer.bottleneck.receive_table(trainer.session.table)
            trainer.progress.note(f"Resumed after step {facts['step']}.")
        self.stepper = Stepper(trainer)
        self.interrupted = False
        self.fresh = state is None
        self.course = Course()
        self._clock = time.perf_counter()
        self.mean = Mean(self.stepper.weights) if self.config.until == "converged" else None
        if state is not None:
            self._restore(*state)

    def train(self) -> dict[str, Any]:
        """Do what is left of it; returns `Course.summary`.

        Raises:
            TrainingError: the loss left the finite numbers.
            KeyboardInterrupt: it was interrupted; the state is saved.
        """
        with self._interruption_deferred():
            if self.fresh:
                self._measure({})
            stopped = self._steps()
            self._count_time()
        return self.course.summary(stopped, self.config.until)

    @contextmanager
    def _interruption_deferred(self) -> Iterator[None]:
        """Ctrl-C (or a SIGTERM) waits until the step in hand is finished; a second Ctrl-C stops at once."""

        def note(_number: int, _frame: Any) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        previous = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _steps(self) -> str:
        """Make the optimiser's steps; returns why there are no more."""
        course, steps = self.course, self.config.steps if self.stepper.optimizer else 0
        with self.trainer.progress.task("Training", steps, "steps") as advance:
            advance(course.step)
            while not (ended := self._ended()):
                try:
                    logged = self._step()
                except NothingToTrainError:
                    self.trainer.progress.note(
                        "Nothing to train: the objective depends on no parameter "
                        f"(no gradient passes through {self.trainer.bottleneck.adapter.name!r})."
                    )
                    return "nothing to train"
                course.step += 1
                advance(1)
                if self.mean is not None:
                    self.mean.observe(course.step)
                if is_check(course.step, self.config):
                    self._measure(logged)
                if self.interrupted or course.step % self.config.save_every == 0:
                    self._save()
                if self.interrupted:
                    raise KeyboardInterrupt
        return ended

    def _ended(self) -> str:
        """Why there is no next step; empty where there is one."""
        course, config = self.course, self.config
        if config.steps and self.stepper.optimizer is None:
            return "nothing to train"
        if course.stale >= config.patience:
            return "patience"
        if config.until == "converged" and course.converged:
            return "converged"
        return "steps" if course.step >= config.steps else ""

    def _step(self) -> dict[str, Any]:
        number = self.course.step
        batch = self.trainer.batches.batch(number)
        try:
            return self.stepper.step(batch, number, compare=is_check(number + 1, self.config))
        except NotFiniteError as error:
            self._save()
            raise TrainingError(
                f"{error} became NaN or infinite at step {number}; the weights before it are kept.",
                f"Lower the learning rate and resume: stage1 train --resume --output {self.run.path} "
                f"--set train.lr={self.config.lr / 10:g}",
            ) from None

    def _measure(self, logged: Mapping[str, Any]) -> None:
        """Measure on the selection split, remember the best weights, log; in a trial the closed form, too."""
        course, trainer = self.course, self.trainer
        solvable = trainer.fast and trainer.objective.least_squares
        with self.mean.applied(trainer.bottleneck) if self.mean else nullcontext():
            trial = course.step > 0 and is_trial(course.step, self.config)
            course.measured(self._log(logged, ask=not (trial and solvable)), trainer.bottleneck)
            if trial or course.stale >= self.config.patience:
                solved = solvable and self._solved()
                error = self._log({"solved": True}) if solved else course.last_error
                course.tried(error, trainer.bottleneck)

    def _solved(self) -> bool:
        """Give the adapter its closed form, where least squares is what was trained for."""
        trainer = self.trainer
        with trainer.progress.task("Solving the last layer"), torch.no_grad():
            try:
                trainer.bottleneck.adapter.solve_last_layer(trainer.bottleneck.encode_rows, trainer.rows)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                # Hidden units that a far too high learning rate has saturated are all alike.
                trainer.progress.note(
                    "The last layer's closed form has no solution here: it stays as trained."
                )
                return False
        return True

    def _log(self, logged: Mapping[str, Any], *, ask: bool = True) -> float:
        """Measure, and log it with what was `logged`; returns what chooses the checkpoint."""
        trainer, step = self.trainer, self.course.step
        self.stepper.module.eval()
        measured = trainer.selection.measure(trainer, ask=ask)
        if is_first():
            entry = {"step": step, **logged, "selection": measured}
            load_plugins().emit("stage1_step", run=self.run.path, step=step, metrics=entry)
        # Every process must come to the same decision.
        return float(broadcast(torch.tensor(measured["score"], device=trainer.session.device)))

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.course.seconds += now - self._clock
        self._clock = now

    # -- what a resumed run goes on from ------------------------------------------------------------------

    def _save(self) -> None:
        self._count_time()
        if is_first():
            self.run.state.save(*self._state())

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The weights now, at their best and on average, the optimiser's moments, where training stands."""
        trainer, stepper = self.trainer, self.stepper
        tensors = {f"now.{name}": value for name, value in trainer.bottleneck.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.course.best.items()}
        tensors |= {f"mean.{name}": value for name, value in (self.mean.values if self.mean else {}).items()}
        names = list(stepper.weights)
        for index, slots in stepper.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{names[index]}.{slot}": value for slot, value in slots.items()}
        facts = {
            **self.course.facts,
            "frozen": sorted(trainer.bottleneck.frozen),
            "parts": stepper.parts,
            "running": trainer.objective.running,
            "typical": trainer.selection.typical,
        }
        return tensors, facts

    def _restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """All but the weights as they were when they were saved."""
        trainer, stepper = self.trainer, self.stepper
        names = list(stepper.weights)
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in _part(tensors, "optimizer.").items():
            name, _, slot = key.rpartition(".")
            slots.setdefault(names.index(name), {})[slot] = value
        if stepper.optimizer is not None:
            stepper.optimizer.load_state_dict({**stepper.optimizer.state_dict(), "state": slots})
        if self.mean is not None:
            self.mean.values |= _part(tensors, "mean.")
        stepper.parts = facts["parts"]
        trainer.objective.running, trainer.selection.typical = facts["running"], facts["typical"]
        best = _part(tensors, "best.")
        self.course = Course(**{name: facts[name] for name in self.course.facts}, best=best)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

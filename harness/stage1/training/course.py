"""How a training goes: the best step so far, and whether there was one after the start."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

GAIN = 0.02
"""A training goes on while its error falls by more than this share for every doubling of its steps."""


@dataclass
class Course:
    """Where a training stands. `error` is what chooses the checkpoint: lower is better."""

    step: int = 0
    first_error: float = math.inf
    last_error: float = math.inf  # without a closed form, as all but the next
    lowest_error: float = math.inf
    best_error: float = math.inf
    best_step: int = 0
    stale: int = 0  # measurements since the lowest
    seconds: float = 0.0  # that it took, interruptions left out
    trials: list[tuple[int, float]] = field(default_factory=list)  # steps, and the error they come to
    best: dict[str, Tensor] = field(default_factory=dict)  # the weights then

    def measured(self, error: float, module: nn.Module) -> None:
        """Remember the `error` at this step, and the weights where it is the lowest so far."""
        if self.step == 0:
            self.first_error = error
        self.last_error = error
        self.stale += 1
        if error < self.lowest_error:
            self.lowest_error, self.stale = error, 0
        self._keep(error, module)

    def tried(self, error: float, module: nn.Module) -> None:
        """Remember the `error` that these steps come to, the last layer solved where it can be."""
        self.trials.append((self.step, min(error, self.last_error)))
        self._keep(error, module)

    def _keep(self, error: float, module: nn.Module) -> None:
        if error < self.best_error:
            self.best_error, self.best_step = error, self.step
            self.best = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @property
    def converged(self) -> bool | None:
        """Whether the error at the last trial fell by no more than `GAIN` per doubling of the steps.

        It is held against the last trial of at most half its steps; None without one.
        """
        step, error = self.trials[-1] if self.trials else (0, math.inf)
        earlier = [trial for trial in self.trials if 2 * trial[0] <= step]
        if not earlier:
            return None
        before, then = earlier[-1]
        return not error < then * (1 - GAIN) ** math.log2(step / before)

    @property
    def facts(self) -> dict[str, Any]:
        """All but the weights, as JSON."""
        return {name: value for name, value in vars(self).items() if name != "best"}

    def summary(self, stopped: str, until: str) -> dict[str, Any]:
        """What `results.json` says of the training: optimiser steps made, why no more, what came of it.

        `stopped`: `converged`, `steps` (all that were allowed), `patience` or `nothing to train`.
        `converged`: whether the error no longer fell; None where training did not run `until` that. `curve`:
        the errors at the trials.
        """
        told = until == "converged" and self.step > 0
        first, last, best = (
            error if math.isfinite(error) else None
            for error in (self.first_error, self.last_error, self.best_error)
        )
        return {
            "steps": self.step,
            "stopped": stopped,
            "converged": stopped != "steps" if told else None,
            "best_step": self.best_step,
            "improved": self.best_step > 0,
            "first_error": first,
            "last_error": last,
            "best_error": best,
            "curve": [[step, error if math.isfinite(error) else None] for step, error in self.trials],
        }


def told(training: Mapping[str, Any] | None) -> str | None:
    """How a training (a `Course.summary`) went, in a line; None where there was none."""
    if not training or not training["curve"]:
        return None
    why = {
        "converged": "converged",
        "patience": "ended as nothing improved any more",
        "steps": "all that were allowed" + ", not converged" * (training["converged"] is False),
    }
    curve = ", ".join(f"{error:.4g} at {step}" for step, error in training["curve"] if error is not None)
    ended = why.get(training["stopped"], training["stopped"])
    return f"{training['steps']} steps, {ended}: selection error {curve}"


def unimproved(training: Mapping[str, Any] | None) -> str | None:
    """What to say of a training (a `Course.summary`) that ended with its start; None where it did not."""
    if not training or training["improved"] or not training["steps"]:
        return None
    first, last = (
        "no finite number" if error is None else f"{error:.4g}"
        for error in (training["first_error"], training["last_error"])
    )
    return (
        f"Training made nothing better: in {training['steps']} steps the selection error went from {first} "
        f"to {last}, so the start (step 0) was kept. Try a lower learning rate (train.lr)."
    )

"""How a training goes: the best step so far, and whether there was one after the start."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass
class Course:
    """Where a training stands. `error` is what chooses the checkpoint: lower is better."""

    step: int = 0
    first_error: float = math.inf
    last_error: float = math.inf
    best_error: float = math.inf
    best_step: int = 0
    stale: int = 0  # measurements since the best
    seconds: float = 0.0  # that it took, interruptions left out
    best: dict[str, Tensor] = field(default_factory=dict)  # the weights then

    def measured(self, error: float, module: nn.Module, *, solved: bool = False) -> None:
        """Remember the `error` at this step, and the weights where it is the lowest so far.

        `solved`: the step was the closed form at the end, and no step of the optimiser.
        """
        if self.step == 0:
            self.first_error = error
        if not solved:
            self.last_error = error
        self.stale += 1
        if error < self.best_error:
            self.best_error, self.best_step, self.stale = error, self.step, 0
            self.best = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @property
    def facts(self) -> dict[str, Any]:
        """All but the weights, as JSON."""
        return {name: value for name, value in vars(self).items() if name != "best"}

    def summary(self, steps: int, stopped: str) -> dict[str, Any]:
        """What `results.json` says of the training: optimiser steps made, why no more, what came of it."""
        first, last, best = (
            error if math.isfinite(error) else None
            for error in (self.first_error, self.last_error, self.best_error)
        )
        return {
            "steps": steps,
            "stopped": stopped,
            "best_step": self.best_step,
            "improved": self.best_step > 0,
            "first_error": first,
            "last_error": last,
            "best_error": best,
        }


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

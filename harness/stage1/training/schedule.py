"""The learning rate over the steps, when is measured, and the mean of the weights."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stage1.config import TrainConfig

LATE = 8.0
"""How much more late weights count in the mean: it looks back over about a ninth of the steps."""


def learning_rate(step: int, train: TrainConfig) -> float:
    """Linear warm-up; then constant until converged, or a half cosine down to zero at the last step."""
    if step < train.warmup:
        return train.lr * (step + 1) / train.warmup
    if train.until == "converged":
        return train.lr
    done = (step - train.warmup) / max(1, train.steps - train.warmup)
    return train.lr * 0.5 * (1 + math.cos(math.pi * done))


def is_check(step: int, train: TrainConfig) -> bool:
    """Whether the selection split is measured after `step` steps."""
    return step % train.check_every == 0 or step == train.steps


def is_trial(step: int, train: TrainConfig) -> bool:
    """Whether what would come of the training is tried after `step` steps, closed form and all.

    At the last step; until converged, whenever the steps have doubled, too.
    """
    doublings, rest = divmod(step, train.check_every)
    doubled = doublings > 0 and not rest and doublings & (doublings - 1) == 0
    return step == train.steps or (train.until == "converged" and doubled)


class Mean:
    """The mean of the weights over the steps so far, late ones counting most.

    x̄ₖ = x̄ₖ₋₁ + (xₖ − x̄ₖ₋₁) (γ + 1) / (k + γ), with γ = `LATE`. With a constant learning rate it is at any
    step about as good as a schedule that had planned to end there (polynomial-decay averaging: Shamir and
    Zhang, 2013).

    Args:
        weights: the parameters that are trained, by name.

    Attributes:
        values: their means.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights
        self.values = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def observe(self, step: int) -> None:
        """Count the weights as they are after `step` steps, 1 the first."""
        for name, mean in self.values.items():
            mean.lerp_(self.weights[name], (LATE + 1) / (step + LATE))

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """While this lasts, the parameters are their means; what becomes of `module` meanwhile is undone."""
        now = {name: value.detach().clone() for name, value in module.state_dict().items()}
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(self.values[name])
        try:
            yield
        finally:
            module.load_state_dict(now)

"""Length of the reconstructed vectors."""

from torch import Tensor

from stage1 import Loss, LossInputs, hookimpl

SHORTEST = 1e-12
"""Vectors shorter than this count as this long: the logarithm of zero is not a number."""


class Norm(Loss):
    """(ln ‖ê‖ − ln ‖e‖)², averaged: how far the reconstructed vectors' lengths are off. Unitless.

    0 is the right length everywhere; twice or half as long is 0.48. Blind to direction: use it beside
    `cosine` or `recon`, not alone.
    """

    name = "norm"
    tokenwise = True

    def forward(self, inputs: LossInputs) -> Tensor:
        return inputs.mean((_log_norm(inputs.reconstruction) - _log_norm(inputs.original)).square())


def _log_norm(vectors: Tensor) -> Tensor:
    """[B, L] of [B, L, D]; the gradient at a zero vector is zero."""
    return vectors.square().sum(-1).clamp(min=SHORTEST**2).log() / 2


@hookimpl
def stage1_losses() -> type[Loss]:
    return Norm

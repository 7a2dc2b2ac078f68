"""Squared error, each token measured by its own length."""

from torch import Tensor

from stage1 import Loss, LossInputs, hookimpl

SHORTEST = 1e-3
"""Least mean square that an embedding counts with, as a share of the embeddings' variance: the rows of
unused tokens are all but zero."""


class Relative(Loss):
    """‖ê − e‖² / ‖e‖², averaged: the noise-to-signal ratio of the reconstructed vectors. Unitless.

    0 is perfect, 1 is the zero vector, 0.01 is 20 dB. Where `recon` measures every token by the spread of all
    embeddings, so that the long ones weigh most, here each counts alike.
    """

    name = "relative"
    tokenwise = True  # it looks at each position alone, so training may go over distinct tokens

    def forward(self, inputs: LossInputs) -> Tensor:
        noise = (inputs.reconstruction - inputs.original).square().mean(-1)  # [B, L]
        signal = inputs.original.square().mean(-1).clamp(min=SHORTEST * inputs.variance)
        return inputs.mean(noise / signal)


@hookimpl
def stage1_losses() -> type[Loss]:
    return Relative

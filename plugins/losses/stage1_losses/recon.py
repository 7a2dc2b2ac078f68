"""Normalised squared error."""

from torch import Tensor

from stage1 import Loss, LossInputs, hookimpl


class Recon(Loss):
    """Mean squared error over the token-weighted variance of the embeddings. Unitless.

    0 is perfect and 1 is "always the mean embedding", whatever the scale of the model's embeddings.
    """

    name = "recon"
    tokenwise = True
    least_squares = True

    def forward(self, inputs: LossInputs) -> Tensor:
        error = (inputs.reconstruction - inputs.original).square().mean(-1)  # [B, L]
        return inputs.mean(error) / inputs.variance


@hookimpl
def stage1_losses() -> type[Loss]:
    return Recon

"""Telling a token from the others by its reconstructed vector."""

import torch
from pydantic import Field
from torch import Tensor, nn

from stage1 import ComponentConfig, Loss, LossInputs, hookimpl


class ContrastConfig(ComponentConfig):
    """Options of `contrast`."""

    temperature: float = Field(
        0.05, gt=0, description="Squared distance, in units of the embeddings' total variance, that counts 1."
    )


class Contrast(Loss):
    """How surely the reconstructed vector tells its token from the others of the batch. Nats.

    −ln of the softmax over the batch's distinct tokens of minus their squared distance to the vector.

    It is InfoNCE (van den Oord, Li and Vinyals, 2018): `recon` asks for a small error, this one for an error
    that does not lead to another token. Least squares shrinks what it cannot know towards the mean, and there
    rows of small norm are nearest to everything. The others are the tokens of the same batch, so the value
    depends on its size. Use it beside `recon`, and below it: `--loss recon --loss contrast=0.1`.
    """

    name = "contrast"
    tokenwise = True
    contrastive = True
    Config = ContrastConfig

    def forward(self, inputs: LossInputs) -> Tensor:
        crossed = inputs.weights > 0  # [B, L]
        ids, original = inputs.ids[crossed], inputs.original[crossed]  # [N], [N, D]
        reconstructed, weights = inputs.reconstruction[crossed], inputs.weights[crossed]
        unit = self.config.temperature * inputs.variance * original.shape[-1]
        distinct, own = torch.unique(ids, return_inverse=True)  # [K], [N]
        candidates = original.new_empty(len(distinct), original.shape[-1])
        candidates[own] = original
        # −‖ê − e‖² without ‖ê‖², which is the same for all candidates of a position
        scores = (2 * reconstructed @ candidates.T - candidates.square().sum(-1)) / unit  # [N, K]
        surprise = nn.functional.cross_entropy(scores, own, reduction="none")
        return (surprise * weights).sum() / weights.sum()


@hookimpl
def stage1_losses() -> type[Loss]:
    return Contrast

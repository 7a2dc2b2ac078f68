"""Cosine distance."""

from torch import Tensor
from torch.nn.functional import cosine_similarity

from stage1 import Loss, LossInputs, hookimpl


class Cosine(Loss):
    """1 − cosine similarity of original and reconstructed vector, averaged. Unitless, 0 to 2.

    Blind to magnitude: use it beside `recon` or with `--magnitude vocab`, not alone.
    """

    name = "cosine"
    tokenwise = True

    def forward(self, inputs: LossInputs) -> Tensor:
        return inputs.mean(1 - cosine_similarity(inputs.reconstruction, inputs.original, dim=-1, eps=1e-12))


@hookimpl
def stage1_losses() -> type[Loss]:
    return Cosine

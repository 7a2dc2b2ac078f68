"""The residual adapter, whose vectors snap to the vocabulary where there is no doubt."""

import torch
from pydantic import Field
from torch import Tensor, nn

from stage1 import Adapter, Code, Encode, hookimpl, nearest_rows
from stage1_adapters.mlp import MLPConfig
from stage1_adapters.residual import Residual


class SnapConfig(MLPConfig):
    """Options of `snap`."""

    margin: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Largest distance to the nearest token, as a share of that to the second nearest, at "
        "which a vector snaps; 1: always.",
    )


class Snap(Residual):
    """`residual`, whose vectors become the vocabulary's nearest embedding where that is clearly the nearest.

    The receiver owns the LLM's embedding table, so this is allowed, and where the token is recovered its
    vector is exact. `codebook` compares codes; this compares embeddings, so it needs no token-wise
    compressor. What is clear says Lowe's ratio test (2004). Only in evaluation: training and closed forms see
    what the residual adapter says, which decides how near the right token is.

    With `margin: 1` nothing but token ids comes out, as from a codebook.
    """

    name = "snap"
    Config = SnapConfig

    def __init__(self, config: SnapConfig, code_dim: int, embed_dim: int) -> None:
        super().__init__(config, code_dim, embed_dim)
        self.table: Tensor = nn.Buffer(torch.zeros(0, embed_dim), persistent=False)  # [V, D]

    def receive_table(self, encode: Encode, table: Tensor) -> None:
        self.table = table

    def forward(self, code: Code) -> Tensor:
        reconstructed = super().forward(code)
        if self.training:
            return reconstructed
        vectors = reconstructed.flatten(0, -2)  # [N, D]
        ids, distances = nearest_rows(vectors.float(), self.table.float(), 2)
        clear = distances[:, 0].sqrt() <= self.config.margin * distances[:, 1].sqrt()
        snapped = torch.where(clear[:, None], self.table[ids[:, 0]].to(vectors.dtype), vectors)
        return snapped.view_as(reconstructed)


@hookimpl
def stage1_adapters() -> type[Adapter]:
    return Snap

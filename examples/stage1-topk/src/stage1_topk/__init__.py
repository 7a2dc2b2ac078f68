"""A compressor that sends the few largest values of a rotated embedding, and where they stand."""

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from stage1 import (
    Code,
    ComponentConfig,
    Compressor,
    ConfigError,
    ConfigIssue,
    TokenStats,
    hookimpl,
    straight_through,
)

VALUE_BITS = 16
"""Of a value that is sent (bfloat16)."""


class TopKConfig(ComponentConfig):
    """Options of `topk`."""

    keep: int = Field(16, gt=0, description="Values of each vector that are sent.")


class TopK(Compressor):
    """The `keep` largest of D values in a basis of principal directions, which training may turn.

    A k-sparse autoencoder (Makhzani and Frey, 2013) with its encoder started at exact PCA. Which values are
    sent is chosen anew for every token, where PCA sends the same directions of all; the choice costs
    log₂ (D choose keep) bits beside the values. Gradients reach the values that are sent.

    Options: `keep`, at most the embeddings' width D.
    """

    name = "topk"
    Config = TopKConfig
    wire_dtype = None  # few values and their places cross, not D numbers

    def __init__(self, config: TopKConfig, embed_dim: int) -> None:
        super().__init__(config, embed_dim)
        if config.keep > embed_dim:
            message = f"{config.keep} is more than the {embed_dim} values there are; choose 1 to {embed_dim}."
            raise ConfigError([ConfigIssue("compressor.keep", message)])
        self.weight = nn.Parameter(torch.eye(embed_dim))  # [D, D] a direction a row
        self.mean = nn.Buffer(torch.zeros(embed_dim))  # [D]

    @torch.no_grad()
    def fit(self, stats: TokenStats) -> None:
        self.weight.copy_(stats.principal_components()[1])
        self.mean.copy_(stats.mean)

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        values = (embeds - self.mean) @ self.weight.T  # [B, L, D]
        values = straight_through(values.bfloat16().to(values.dtype), values)
        places = values.abs().topk(self.config.keep, dim=-1).indices
        sent = torch.zeros_like(values).scatter(-1, places, values.gather(-1, places))
        return Code(sent, mask)

    def bits(self, code: Code) -> Tensor:
        n, k = self.embed_dim, self.config.keep
        whole = math.ceil(math.log2(math.comb(n, k))) + VALUE_BITS * k
        return torch.full(code.mask.shape, float(whole), device=code.mask.device)

    def inverse(self, code: Code) -> Tensor:
        decoder: Tensor = torch.linalg.pinv(self.weight.double()).T.to(code.vectors.dtype)  # [D, D]
        return code.vectors @ decoder + self.mean


@hookimpl
def stage1_compressors() -> type[Compressor]:
    return TopK

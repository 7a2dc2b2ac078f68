"""The least-squares decoder."""

import torch
from torch import Tensor

from stage1 import Adapter, Code, ComponentConfig, TokenStats, hookimpl
from stage1.interfaces import Encoder
from stage1.tokens import least_squares


class Linear(Adapter):
    """ê = z A + b with the least count-weighted squared error over the training prompts' tokens.

    In closed form, from the codes as they come off the wire; no gradient step is taken. It is what any
    trained adapter has to beat.
    """

    name = "linear"

    def __init__(self, config: ComponentConfig, code_dim: int, embed_dim: int) -> None:
        super().__init__(config, code_dim, embed_dim)
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", torch.zeros(code_dim, embed_dim))  # [d, D]
        self.register_buffer("bias", torch.zeros(embed_dim))  # [D]

    def warm_start(self, encode: Encoder, stats: TokenStats) -> None:
        weight, bias = least_squares(encode(stats.embeds), stats.embeds, stats.shares)
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def decode(self, codes: Tensor) -> Tensor:
        """Embeddings [..., D] of codes [..., d]."""
        return codes @ self.weight + self.bias

    def forward(self, code: Code) -> Tensor:
        return self.decode(code.vectors)


@hookimpl
def stage1_adapters() -> type[Adapter]:
    return Linear

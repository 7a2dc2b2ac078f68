"""The least-squares decoder."""

import torch
from torch import Tensor, nn

from stage1 import Adapter, Code, ComponentConfig, Encode, TokenStats, hookimpl, least_squares


class Linear(Adapter):
    """ê = z A + b, started at the least count-weighted squared error over the training prompts' tokens.

    The start is a closed form, from the codes as they come off the wire; with `--set train.steps=0` it is
    the result, which any trained adapter has to beat. Gradient steps then follow whatever losses are
    asked for. Training on distinct tokens under `recon` ends with the closed form for its own weights.
    """

    name = "linear"

    def __init__(self, config: ComponentConfig, code_dim: int, embed_dim: int) -> None:
        super().__init__(config, code_dim, embed_dim)
        self.weight = nn.Parameter(torch.zeros(code_dim, embed_dim))  # [d, D]
        self.bias = nn.Parameter(torch.zeros(embed_dim))  # [D]

    def warm_start(self, encode: Encode, stats: TokenStats) -> None:
        self.solve_last_layer(encode, stats)

    @torch.no_grad()
    def solve_last_layer(self, encode: Encode, stats: TokenStats) -> None:
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

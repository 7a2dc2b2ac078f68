"""A multilayer perceptron from code to embedding."""

from dataclasses import replace
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from stage1 import Adapter, Code, ComponentConfig, Derived, Encode, TokenStats, hookimpl, least_squares

RIDGE = 1e-5
"""Share of the hidden units' mean variance that keeps the solved last layer from chasing noise."""


class MLPConfig(ComponentConfig):
    """Options of `mlp` and `residual`."""

    expansion: float = Field(4.0, gt=0, description="Hidden units per dimension of the embedding.")
    depth: int = Field(1, ge=1, description="Hidden layers.")


class MLP(Adapter):
    """One hidden layer of GELU units, trained; knows the codes' and the embeddings' scale from the start.

    Codes are standardised on the way in and embeddings un-standardised on the way out, both with
    statistics of the training prompts: Llama's embeddings have an RMS near 0.01, where a freshly
    initialised network would spend its training on finding the scale. Training on distinct tokens ends by
    solving the last layer exactly, by ridge regression on the hidden units.
    """

    name = "mlp"
    Config = MLPConfig

    def __init__(self, config: MLPConfig, code_dim: int, embed_dim: int) -> None:
        super().__init__(config, code_dim, embed_dim)
        hidden = max(1, round(config.expansion * embed_dim))
        widths = [code_dim, *[hidden] * config.depth]
        layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.GELU())]
        self.net = nn.Sequential(*layers, nn.Linear(hidden, embed_dim))
        self.code_mean = nn.Buffer(torch.zeros(code_dim))  # [d]
        self.code_scale = nn.Buffer(torch.ones(()))
        self.embed_mean = nn.Buffer(torch.zeros(embed_dim))  # [D]
        self.embed_scale = nn.Buffer(torch.ones(()))

    def warm_start(self, encode: Encode, stats: TokenStats) -> None:
        codes = replace(stats, embeds=encode(stats.embeds))
        self.code_mean.copy_(codes.mean)
        # One scale for all dimensions: which directions vary most is information, whitening would hide it.
        self.code_scale.fill_(codes.scale)
        self.embed_mean.copy_(stats.mean)
        self.embed_scale.fill_(stats.scale)

    def solve_last_layer(self, encode: Encode, stats: TokenStats) -> None:
        self.solve(encode(stats.embeds), Derived(stats.embeds, lambda part: part), stats.shares)

    def solve(self, codes: Tensor, targets: Derived, shares: Tensor) -> None:
        """Give the last layer its optimum for `codes` [U, d] and `targets` [U, D], given the hidden units."""
        hidden = Derived(codes, lambda part: self.net[:-1](self._standardise(part)))
        wanted = Derived(
            targets.rows, lambda part: (targets.function(part) - self.embed_mean) / self.embed_scale
        )
        weight, bias = least_squares(hidden, wanted, shares, RIDGE)
        last = self.net[-1]
        last.load_state_dict({"weight": weight.T.float(), "bias": bias.float()})

    def _standardise(self, codes: Tensor) -> Tensor:
        return (codes - self.code_mean) / self.code_scale

    def forward(self, code: Code) -> Tensor:
        reconstructed: Tensor = self.net(self._standardise(code.vectors)) * self.embed_scale + self.embed_mean
        return reconstructed


@hookimpl
def stage1_adapters() -> type[Adapter]:
    return MLP

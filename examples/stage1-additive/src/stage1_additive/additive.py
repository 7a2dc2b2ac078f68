"""A sum of one curve for each value of the code."""

import torch
from pydantic import Field
from torch import Tensor, nn

from stage1 import Adapter, Code, ComponentConfig, Encode, TokenStats, hookimpl, least_squares


class AdditiveConfig(ComponentConfig):
    """Options of `additive`."""

    knots: int = Field(16, ge=2, description="Points between which each curve is straight.")
    ridge: float = Field(
        1e-5, gt=0, description="Penalty on the weights, as a share of the features' mean variance."
    )


class Additive(Adapter):
    """ê = b + Σⱼ fⱼ(zⱼ), each fⱼ a piecewise linear curve through embedding space.

    A generalised additive model (Hastie and Tibshirani, 1986): bent where the `linear` decoder is straight,
    and still linear in its weights, so that it starts at (and training on distinct tokens under `recon` ends
    with) the closed-form ridge solution. Behind 4-bit values its 16 knots give each level of each dimension
    a vector of its own, to be summed: the decoder of additive quantisation (Babenko and Lempitsky, 2014).

    The solution is that of d · knots equations; it is made for codes of a few hundred values at most.
    """

    name = "additive"
    Config = AdditiveConfig

    def __init__(self, config: AdditiveConfig, code_dim: int, embed_dim: int) -> None:
        super().__init__(config, code_dim, embed_dim)
        self.weight = nn.Parameter(torch.zeros(code_dim * config.knots, embed_dim))  # [d · knots, D]
        self.bias = nn.Parameter(torch.zeros(embed_dim))  # [D]
        self.low = nn.Buffer(torch.zeros(code_dim))  # [d] where the first knot is
        self.span = nn.Buffer(torch.ones(code_dim))  # [d] > 0, from there to the last

    def warm_start(self, encode: Encode, stats: TokenStats) -> None:
        codes = encode(stats.embeds)
        self.low.copy_(codes.amin(0))
        self.span.copy_((codes.amax(0) - self.low).clamp(min=1e-12))
        self.solve_last_layer(encode, stats)

    @torch.no_grad()
    def solve_last_layer(self, encode: Encode, stats: TokenStats) -> None:
        features = self.features(encode(stats.embeds))
        weight, bias = least_squares(features, stats.embeds, stats.shares, self.config.ridge)
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def features(self, codes: Tensor) -> Tensor:
        """[..., d · knots]: how near each value is to each knot; 1 on it, 0 from the next one on."""
        last = self.config.knots - 1
        position = ((codes - self.low) / self.span).clamp(0, 1) * last
        distance = (position[..., None] - torch.arange(last + 1, device=codes.device)).abs()
        nearness: Tensor = (1 - distance).clamp(min=0)  # [..., d, knots]
        return nearness.flatten(-2)

    def forward(self, code: Code) -> Tensor:
        return self.features(code.vectors) @ self.weight + self.bias


@hookimpl
def stage1_adapters() -> type[Adapter]:
    return Additive

"""A non-linear encoder, trained."""

import torch
from pydantic import Field
from torch import Tensor, nn

from stage1 import Code, Compressor, SizeConfig, TokenStats, hookimpl
from stage1_compressors.learned_linear import LearnedLinear

SILENT = 1e-4
"""Standard deviation of V at the start: the hidden units are hardly heard."""


class AutoencoderConfig(SizeConfig):
    """Options of `autoencoder`."""

    expansion: float = Field(2.0, gt=0, description="Hidden units per dimension of the embedding.")


class Autoencoder(Compressor):
    """z = W (e − ē) + b + V GELU(U (e − ē) / σ), trained together with the adapter, its decoder.

    The encoder of an autoencoder with one hidden layer (Hinton and Salakhutdinov, 2006) beside a linear map.
    W starts at exact PCA and V next to zero: step 0 is PCA for all that matters, and `learned_linear` is what
    is left where the hidden units stay silent. ē and σ, mean and standard deviation of the training prompts'
    embeddings, are fixed. There is no inverse: what a non-linear code means is for the adapter to learn.

    Options: `expansion`, and `ratio` or `dim` for the width.
    """

    name = "autoencoder"
    Config = AutoencoderConfig

    def __init__(self, config: AutoencoderConfig, embed_dim: int) -> None:
        super().__init__(config, embed_dim)
        self.linear = LearnedLinear(config, embed_dim)
        hidden = max(1, round(config.expansion * embed_dim))
        last = nn.Linear(hidden, self.code_dim)
        nn.init.normal_(last.weight, std=SILENT)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(nn.Linear(embed_dim, hidden), nn.GELU(), last)
        self.scale = nn.Buffer(torch.ones(()))

    @property
    def code_dim(self) -> int:
        return self.linear.code_dim

    def fit(self, stats: TokenStats) -> None:
        self.linear.fit(stats)
        self.scale.fill_(stats.scale)

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        correction: Tensor = self.net((embeds - self.linear.mean) / self.scale) * self.scale
        code: Code = self.linear(embeds, mask)
        return Code(code.vectors + correction, mask)


@hookimpl
def stage1_compressors() -> type[Compressor]:
    return Autoencoder

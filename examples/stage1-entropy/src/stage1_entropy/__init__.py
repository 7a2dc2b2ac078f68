"""A compressor that pays for each value what it says, and a loss that makes it say less."""

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from stage1 import Code, ComponentConfig, Compressor, Loss, LossInputs, TokenStats, hookimpl, straight_through

RAREST = 2.0**-24
"""Least probability of a level; a sum of probabilities that are cut off here stays at 1 within 1e-4."""


class EntropyCodedConfig(ComponentConfig):
    """Options of `entropy_coded`."""

    step: float = Field(
        0.5, gt=0, description="Distance of two levels, as a share of the values' standard deviation."
    )


class EntropyCoded(Compressor):
    """Rounds to evenly spaced levels, coded at −log₂ of the probability that a learned prior gives them.

    Made to follow another compressor. Under the prior the values of each dimension have a logistic
    distribution of its own, as in learned image compression (Ballé, Laparra and Simoncelli, 2017): a frequent
    level costs little and a rare one much. The prior is fitted to the training prompts' tokens; the loss
    `rate` goes on training it, together with what makes the values. Bits are those of an ideal arithmetic
    coder.
    """

    name = "entropy_coded"
    Config = EntropyCodedConfig
    wire_dtype = None  # levels cross

    def __init__(self, config: EntropyCodedConfig, embed_dim: int) -> None:
        super().__init__(config, embed_dim)
        self.center = nn.Parameter(torch.zeros(embed_dim))  # [D] in levels
        self.log_width = nn.Parameter(torch.zeros(embed_dim))  # [D] of the logistic's scale, in levels
        self.step = nn.Buffer(torch.ones(()))

    @torch.no_grad()
    def fit(self, stats: TokenStats) -> None:
        self.step.fill_(self.config.step * stats.scale)
        self.center.copy_(stats.mean / self.step)
        deviation = stats.covariance().diagonal().clamp(min=0).sqrt() / self.step
        self.log_width.copy_((deviation * 3**0.5 / math.pi).clamp(min=0.1).log())  # a logistic's deviation

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        levels = embeds / self.step
        return Code(straight_through(levels.round(), levels) * self.step, mask)

    def bits(self, code: Code) -> Tensor:
        away = (code.vectors / self.step - self.center).abs()  # [B, M, d]; a logistic is symmetric
        width = self.log_width.exp()
        probability = torch.sigmoid((0.5 - away) / width) - torch.sigmoid((-0.5 - away) / width)
        return -probability.clamp(min=RAREST).log2().sum(-1)

    def inverse(self, code: Code) -> Tensor:
        return code.vectors


class Rate(Loss):
    """What the code costs: bits of each vector divided by the embeddings' width D, averaged. Bits.

    Has a gradient behind a compressor whose `bits` has one, such as `entropy_coded`; with a weight, the
    objective is the rate-distortion Lagrangian.
    """

    name = "rate"
    tokenwise = True

    def forward(self, inputs: LossInputs) -> Tensor:
        return inputs.mean(inputs.code.bits) / inputs.original.shape[-1]


@hookimpl
def stage1_compressors() -> type[Compressor]:
    return EntropyCoded


@hookimpl
def stage1_losses() -> type[Loss]:
    return Rate

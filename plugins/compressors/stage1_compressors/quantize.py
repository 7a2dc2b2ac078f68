"""Scalar quantisation: each value by itself."""

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from stage1 import Code, ComponentConfig, Compressor, TokenStats, hookimpl, straight_through

RANGES = 50
"""Ranges of levels that are tried for each dimension."""

SMALLEST = 1e-12
"""Least distance of two levels, for values that do not vary."""

SCALE_BITS = 16
"""Bits of a scale that is sent (bfloat16)."""


class QuantizeConfig(ComponentConfig):
    """Options of `quantize`."""

    bits: int = Field(8, ge=1, le=16, description="Bits of a value.")
    group: int | None = Field(
        None,
        gt=0,
        description="Neighbouring values that share a scale, sent in 16 bits; as many as a vector has, or "
        "more: one for the vector. Default: no scale is sent, each dimension's levels are fitted.",
    )


class Quantize(Compressor):
    """Rounds each value to one of 2^bits evenly spaced levels, low + k · step, and sends k: int8, int4, any.

    Made to follow another compressor (`--compressor pca --compressor quantize`); works on embeddings too.

    Without `group` each dimension has levels of its own, fitted to the training prompts' tokens: of `RANGES`
    ranges around its mean, from all its values down to a hundredth of that, the one with the least
    count-weighted squared error. A narrower range clips the few values outside and is finer on all others
    (Choukroun, Kravchik, Yang and Kisilev, 2019). With `group` the levels go from −s to s, where s is the
    largest magnitude among so many values of the vector at hand and is sent too (Dettmers et al.,
    arXiv:2208.07339).

    The vectors of its code are what the receiver looks up. The gradient passes straight through the
    rounding (Bengio, Léonard and Courville, 2013), so that a trained compressor in front goes on learning.
    """

    name = "quantize"
    Config = QuantizeConfig
    wire_dtype = None  # indices cross, not numbers of any type

    def __init__(self, config: QuantizeConfig, embed_dim: int) -> None:
        super().__init__(config, embed_dim)
        self.low = nn.Buffer(torch.zeros(embed_dim))  # [d]
        self.step = nn.Buffer(torch.ones(embed_dim))  # [d] > 0

    @classmethod
    def rates(cls, config: QuantizeConfig, embed_dim: int) -> list[dict[str, int]]:
        return [{"bits": bits} for bits in range(1, 17)]

    def fit(self, stats: TokenStats) -> None:
        if self.config.group:
            return
        values = stats.embeds.float()  # [U, d]
        mean = stats.mean.float()
        first, last = values.amin(0), values.amax(0)
        reach = torch.maximum(mean - first, last - mean)
        least = torch.full_like(stats.mean, torch.inf)
        for share in torch.logspace(-2, 0, RANGES):
            low = torch.maximum(first, mean - share * reach)
            step = self._step(low, torch.minimum(last, mean + share * reach))
            errors = (low + self._index(values, low, step) * step - values).square()
            error = replace(stats, embeds=errors).mean  # [d] weighted by count
            better = error < least
            least = torch.where(better, error, least)
            self.low.copy_(torch.where(better, low, self.low))
            self.step.copy_(torch.where(better, step, self.step))

    def symbols(self, embeds: Tensor, mask: Tensor) -> Tensor:
        values = embeds.float()
        low, step = self._levels(values)
        index = self._index(values, low, step)
        return torch.cat([index, low[..., :: self.config.group]], dim=-1) if self.config.group else index

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        values = embeds.float()
        low, step = self._levels(values)
        received = low + self._index(values, low, step) * step
        return Code(straight_through(received.to(embeds.dtype), embeds), mask)

    def bits(self, code: Code) -> Tensor:
        group = self.config.group
        scales = -(-self.embed_dim // group) if group else 0
        whole = float(self.embed_dim * self.config.bits + scales * SCALE_BITS)
        return torch.full(code.mask.shape, whole, device=code.mask.device)

    def inverse(self, code: Code) -> Tensor:
        return code.vectors

    def _levels(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """`low` and `step` of each of `values` [..., d]."""
        if not self.config.group:
            return self.low.float(), self.step.float()
        groups = torch.split(values, self.config.group, dim=-1)
        scales = [group.abs().amax(-1, keepdim=True).bfloat16().float().expand_as(group) for group in groups]
        scale = torch.cat(scales, dim=-1)
        return -scale, self._step(-scale, scale)

    def _step(self, low: Tensor, high: Tensor) -> Tensor:
        step: Tensor = (high - low) / (2**self.config.bits - 1)
        return step.clamp(min=SMALLEST)

    def _index(self, values: Tensor, low: Tensor, step: Tensor) -> Tensor:
        return ((values - low) / step).round().clamp(0, 2**self.config.bits - 1)


@hookimpl
def stage1_compressors() -> type[Compressor]:
    return Quantize

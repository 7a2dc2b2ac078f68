"""Scalar and product quantisation."""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
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

RANGES = 50
"""Ranges of levels that are tried for each dimension."""

ITERATIONS = 25
"""Steps of k-means at most."""

SMALLEST = 1e-12
"""Least distance of two levels, for dimensions that do not vary."""


class QuantizeConfig(ComponentConfig):
    """Options of `quantize`."""

    method: Literal["scalar", "product"] = Field(
        "scalar", description="Quantise each value by itself, or several values together."
    )
    bits: int = Field(8, ge=1, le=8, description="Size of an index: a value's or, under `product`, a part's.")
    parts: int | None = Field(
        None,
        gt=0,
        description="Parts of a vector under `product`, one index each; default: half as many as values.",
    )

    @model_validator(mode="after")
    def _parts_need_product(self) -> "QuantizeConfig":
        if self.parts is not None and self.method != "product":
            raise ValueError("parts is an option of method: product; set method=product, or leave parts out")
        return self


class Quantize(Compressor):
    """Rounds to few levels and sends their indices: int8, int4, or product quantisation.

    Made to follow another compressor (`--compressor pca --compressor quantize`), whose code vectors are then
    its embeddings; works on embeddings themselves too. What the indices stand for is fitted once, to the
    training prompts' tokens as they are before any gradient step, and belongs to the checkpoint: nothing
    crosses beside the indices.

    The vectors of its code are what the receiver looks up, so they are as wide as what came in, and the
    inverse has nothing left to do. The gradient passes straight through the rounding, so that a trained
    compressor in front goes on learning.
    """

    name = "quantize"
    Config = QuantizeConfig
    wire_dtype = None  # indices cross, not numbers of any type

    def __init__(self, config: QuantizeConfig, embed_dim: int) -> None:
        super().__init__(config, embed_dim)
        self.quantizer: Scalar | Product
        if config.method == "scalar":
            self.quantizer = Scalar(config.bits, embed_dim)
        else:
            self.quantizer = Product(config.bits, config.parts or max(1, embed_dim // 2), embed_dim)

    def fit(self, stats: TokenStats) -> None:
        self.quantizer.fit(stats)

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        with torch.no_grad():
            received = self.quantizer(embeds.float()).to(embeds.dtype)
        return Code(straight_through(received, embeds), mask)

    def bits(self, code: Code) -> Tensor:
        whole = float(self.quantizer.indices * self.quantizer.bits)
        return torch.full(code.mask.shape, whole, device=code.mask.device)

    def inverse(self, code: Code) -> Tensor:
        return code.vectors


class Scalar(nn.Module):
    """In each dimension the nearest of 2^bits evenly spaced levels, low + k · step.

    Of `RANGES` ranges around a dimension's mean, from all its values down to a hundredth of that, the one
    with the least count-weighted squared error: a narrower range clips the few values outside it and is
    finer on all others (minimum mean squared error clipping: Choukroun, Kravchik, Yang and Kisilev, 2019).
    """

    def __init__(self, bits: int, dim: int) -> None:
        super().__init__()
        self.bits = bits
        self.indices = dim
        self.low: Tensor
        self.step: Tensor
        self.register_buffer("low", torch.zeros(dim))  # [d]
        self.register_buffer("step", torch.ones(dim))  # [d] > 0

    def fit(self, stats: TokenStats) -> None:
        """Choose the ranges."""
        values = stats.embeds.float()  # [U, d]
        mean = stats.mean.float()
        first, last = values.amin(0), values.amax(0)
        reach = torch.maximum(mean - first, last - mean)
        least = torch.full_like(stats.mean, torch.inf)
        for share in torch.logspace(-2, 0, RANGES):
            low = torch.maximum(first, mean - share * reach)
            high = torch.minimum(last, mean + share * reach)
            step = ((high - low) / (2**self.bits - 1)).clamp(min=SMALLEST)
            errors = (self._nearest(values, low, step) - values).square()
            error = replace(stats, embeds=errors).mean  # [d] weighted by count
            better = error < least
            least = torch.where(better, error, least)
            self.low.copy_(torch.where(better, low, self.low))
            self.step.copy_(torch.where(better, step, self.step))

    def forward(self, values: Tensor) -> Tensor:
        """The levels [..., d] nearest to `values` [..., d]."""
        return self._nearest(values, self.low.float(), self.step.float())

    def _nearest(self, values: Tensor, low: Tensor, step: Tensor) -> Tensor:
        index = ((values - low) / step).round().clamp(0, 2**self.bits - 1)
        return low + index * step


class Product(nn.Module):
    """In each of `parts` slices of the vector the nearest of 2^bits centroids.

    Each slice has a codebook of its own, from count-weighted k-means over the distinct tokens' slices
    (Jégou, Douze and Schmid, 2011). With no more distinct slices than centroids nothing is lost. Draws one
    number under the run's seed, from which k-means starts.

    Raises:
        ConfigError: there are more parts than values.
    """

    def __init__(self, bits: int, parts: int, dim: int) -> None:
        super().__init__()
        if parts > dim:
            message = f"{parts} parts are more than a vector's {dim} values; choose 1 to {dim}."
            raise ConfigError([ConfigIssue("compressor.parts", message)])
        self.bits = bits
        self.indices = parts
        self.seed = int(torch.randint(2**31, ()))
        self.codebook: Tensor
        self.register_buffer("codebook", torch.zeros(2**bits, dim))  # the slices' codebooks side by side

    def fit(self, stats: TokenStats) -> None:
        """Find the centroids."""
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        with threadpool_limits(1):  # the order in which threads add up would show in the last digits
            slices = [self._centroids(rows, stats.weights) for rows in self._sliced(stats.embeds)]
        self.codebook.copy_(torch.cat(slices, dim=1))

    def _centroids(self, rows: Tensor, counts: Tensor) -> Tensor:
        """[2^bits, w] for `rows` [U, w], repeated where there are fewer distinct rows."""
        # Takes a second to load, which only fitting should cost.
        from sklearn.cluster import KMeans  # type: ignore[import-untyped]

        distinct, which = torch.unique(rows.double().cpu(), dim=0, return_inverse=True)
        weights = torch.bincount(which, counts.cpu())
        kmeans = KMeans(
            min(len(self.codebook), len(distinct)), n_init=1, max_iter=ITERATIONS, random_state=self.seed
        )
        centers = kmeans.fit(distinct.numpy(), sample_weight=weights.numpy()).cluster_centers_
        return torch.from_numpy(np.resize(centers, (len(self.codebook), rows.shape[1])))

    def forward(self, values: Tensor) -> Tensor:
        """The centroids [..., d] nearest to `values` [..., d]."""
        pairs = zip(self._sliced(values), self._sliced(self.codebook.float()), strict=True)
        return torch.cat([book[_nearest(rows, book)] for rows, book in pairs], dim=-1)

    def _sliced(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """The slices of `vectors` [..., d], as equal in width as can be."""
        return vectors.tensor_split(self.indices, dim=-1)


def _nearest(rows: Tensor, book: Tensor) -> Tensor:
    """Indices [...] of the entries of `book` [K, w] nearest to `rows` [..., w]."""
    # The faster way, by matrix product, rounds differently from batch to batch.
    return torch.cdist(rows, book, compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)


@hookimpl
def stage1_compressors() -> type[Compressor]:
    return Quantize

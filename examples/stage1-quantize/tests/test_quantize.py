"""The compressor: what it sends, what that costs, and how far off it is."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from stage1 import ConfigError, TokenStats
from stage1.testing import CompressorSuite
from stage1_quantize.quantize import Quantize, QuantizeConfig


class TestInt8(CompressorSuite):
    component = Quantize


class TestInt4(CompressorSuite):
    component = Quantize

    @property
    def options(self) -> dict[str, Any]:
        return {"bits": 4}


class TestProduct(CompressorSuite):
    component = Quantize

    @property
    def options(self) -> dict[str, Any]:
        return {"method": "product", "bits": 4}


class TestProductOfUnequalParts(CompressorSuite):
    component = Quantize

    @property
    def options(self) -> dict[str, Any]:
        return {"method": "product", "bits": 3, "parts": 5}


def fitted(stats: TokenStats, seed: int = 0, **options: Any) -> Quantize:
    torch.manual_seed(seed)
    quantize = Quantize(QuantizeConfig(**options), stats.embeds.shape[1])
    quantize.fit(stats)
    return quantize


def received(quantize: Quantize, rows: Tensor) -> Tensor:
    mask = torch.ones(1, len(rows), dtype=torch.bool)
    vectors: Tensor = quantize(rows[None], mask).vectors[0]
    return vectors


def error(quantize: Quantize, stats: TokenStats) -> float:
    """Mean squared error over variance, both weighted by count."""
    squared = (received(quantize, stats.embeds) - stats.embeds).double().square().mean(1)
    return float(stats.shares @ squared) / stats.variance


def test_error_falls_as_bits_rise(stats: TokenStats) -> None:
    scalar = [error(fitted(stats, bits=bits), stats) for bits in range(1, 9)]
    assert scalar == sorted(scalar, reverse=True)
    assert scalar[0] < 1  # better than sending nothing
    assert scalar[-1] < 1e-4
    product = [error(fitted(stats, method="product", bits=bits), stats) for bits in (1, 3, 5, 7)]
    assert product == sorted(product, reverse=True)


def cost(quantize: Quantize, stats: TokenStats) -> set[float]:
    """The bits of the tokens' codes."""
    return set(quantize.bits(quantize(stats.embeds[None], torch.ones(1, 400, dtype=torch.bool)))[0].tolist())


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_no_more_levels_than_the_bits_can_name(stats: TokenStats, bits: int) -> None:
    quantize = fitted(stats, bits=bits)
    unseen = torch.randn(5000, 12, generator=torch.Generator().manual_seed(1))
    for column in received(quantize, torch.cat([stats.embeds, unseen])).T:
        assert len(column.unique()) <= 2**bits
    assert cost(quantize, stats) == {12.0 * bits}


def test_no_more_centroids_than_the_bits_can_name(stats: TokenStats) -> None:
    quantize = fitted(stats, method="product", bits=5, parts=4)
    unseen = torch.randn(5000, 12, generator=torch.Generator().manual_seed(1))
    for part in torch.split(received(quantize, torch.cat([stats.embeds, unseen])), 3, dim=1):
        assert len(torch.unique(part, dim=0)) <= 32
    assert cost(quantize, stats) == {4 * 5}


def test_each_value_goes_to_the_nearest_level(stats: TokenStats) -> None:
    quantize: Any = fitted(stats, bits=3)
    scalar = quantize.quantizer
    levels = scalar.low + torch.arange(8)[:, None] * scalar.step  # [8, 12]
    distances = (stats.embeds[:, None] - levels).abs()  # [400, 8, 12]
    nearest = (received(quantize, stats.embeds) - stats.embeds).abs()
    torch.testing.assert_close(nearest, distances.amin(1), rtol=1e-4, atol=1e-8)


def test_each_part_goes_to_the_nearest_centroid(stats: TokenStats) -> None:
    quantize: Any = fitted(stats, method="product", bits=4, parts=5)  # widths 3, 3, 2, 2, 2
    ours = (received(quantize, stats.embeds) - stats.embeds).square()
    start = 0
    for width in (3, 3, 2, 2, 2):
        part = slice(start, start + width)
        rows, book = stats.embeds[:, part], quantize.quantizer.codebook[:, part]
        best = (rows[:, None] - book).square().sum(-1).amin(1)
        torch.testing.assert_close(ours[:, part].sum(1), best, rtol=1e-4, atol=1e-10)
        start += width


def test_clipping_the_rare_is_better_than_covering_all(stats: TokenStats) -> None:
    embeds = stats.embeds.clone()
    embeds[0] += 1  # one token far away …
    counts = stats.weights.clone()
    counts[0] = 1e-3  # … that hardly ever comes
    stats = replace(stats, embeds=embeds, weights=counts)
    low, high = embeds.amin(0), embeds.amax(0)
    step = (high - low) / 15
    covering = low + ((embeds - low) / step).round() * step
    whole_range = stats.shares @ (covering - embeds).double().square().mean(1)
    assert error(fitted(stats, bits=4), stats) * stats.variance < 0.1 * float(whole_range)


def test_counts_decide_what_is_close(stats: TokenStats) -> None:
    often = replace(stats, weights=torch.where(stats.ids < 40, 1000.0, 1.0).double())
    for options in ({"bits": 3}, {"method": "product", "bits": 5, "parts": 4}):
        of_counts, of_none = (
            fitted(often, **options),
            fitted(replace(often, weights=often.weights**0), **options),
        )
        assert error(of_counts, often) < error(of_none, often)


def test_product_beats_scalar_at_the_same_bits_where_dimensions_are_correlated(stats: TokenStats) -> None:
    assert error(fitted(stats, method="product"), stats) < 0.8 * error(fitted(stats, bits=4), stats)


def test_few_distinct_tokens_lose_nothing(stats: TokenStats) -> None:
    few = TokenStats(stats.ids, stats.weights, stats.embeds[torch.arange(400) % 7])
    torch.testing.assert_close(received(fitted(few, method="product", bits=3), few.embeds), few.embeds)
    one = replace(stats, embeds=torch.full((400, 12), 0.3))  # a dimension without spread has no range
    for options in ({"bits": 4}, {"method": "product"}):
        torch.testing.assert_close(received(fitted(one, **options), one.embeds), one.embeds)


def test_fitting_is_reproducible_under_the_seed(stats: TokenStats) -> None:
    one, two, other = (fitted(stats, seed, method="product", bits=4) for seed in (5, 5, 6))
    assert torch.equal(one.state_dict()["quantizer.codebook"], two.state_dict()["quantizer.codebook"])
    assert not torch.equal(one.state_dict()["quantizer.codebook"], other.state_dict()["quantizer.codebook"])


@pytest.mark.parametrize("options", [{"bits": 4}, {"method": "product", "bits": 4}])
def test_gradient_passes_straight_through(stats: TokenStats, options: dict[str, Any]) -> None:
    quantize = fitted(stats, **options)
    encoder = nn.Linear(12, 12)
    codes = encoder(stats.embeds[None])
    codes.retain_grad()
    vectors = quantize(codes, torch.ones(1, 400, dtype=torch.bool)).vectors
    pull = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2))
    (vectors * pull).sum().backward()
    assert torch.equal(codes.grad, pull)
    assert encoder.weight.grad is not None
    assert encoder.weight.grad.any()


@pytest.mark.parametrize("options", [{"bits": 4}, {"method": "product", "bits": 4}])
def test_what_is_received_is_what_was_looked_up_to_the_last_bit(
    stats: TokenStats, options: dict[str, Any]
) -> None:
    quantize = fitted(stats, **options)
    trained = stats.embeds.clone().requires_grad_()
    assert torch.equal(received(quantize, trained), quantize.quantizer(stats.embeds))


def test_parts_belong_to_product_and_are_no_more_than_values() -> None:
    with pytest.raises(ValidationError, match="method=product"):
        QuantizeConfig(parts=4)
    with pytest.raises(ConfigError, match="choose 1 to 12"):
        Quantize(QuantizeConfig(method="product", parts=13), 12)

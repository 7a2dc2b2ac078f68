"""`quantize` and `rvq`: what they send, what that costs, and how far off it is."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import SMALL, Invoke, settings_args
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import nearest_rows
from stage1.evaluation.rate import symbol_entropy
from stage1.plugins import load_plugins
from stage1.plugins.interfaces import Compressor
from stage1.plugins.tensors import Code, TokenStats
from stage1.testing import Chain, CompressorSuite

MASK = torch.ones(1, 200, dtype=torch.bool)

INT4 = {"bits": 4}
VECTOR_WISE = {"bits": 4, "group": 24}
GROUP_WISE = {"bits": 4, "group": 5}
RESIDUAL = {"stages": 3, "bits": 3}
PRODUCT = {"stages": 1, "bits": 4, "groups": 5}
OPTIONS = [("quantize", INT4), ("quantize", GROUP_WISE), ("rvq", RESIDUAL), ("rvq", PRODUCT)]


class TestGroupWise(CompressorSuite):
    component = load_plugins().get("compressor", "quantize")
    options = GROUP_WISE


class TestProduct(CompressorSuite):
    component = load_plugins().get("compressor", "rvq")
    options = PRODUCT


def fitted(name: str, stats: TokenStats, seed: int = 0, **options: Any) -> Any:
    cls = load_plugins().get("compressor", name)
    made: Compressor = cls(cls.Config(**options), stats.embeds.shape[1])
    Chain([made]).fit(stats, seed=seed)
    return made


def received(made: Compressor, rows: Tensor) -> Tensor:
    vectors: Tensor = made(rows[None], torch.ones(1, len(rows), dtype=torch.bool)).vectors[0]
    return vectors.detach()


def error(made: Compressor, stats: TokenStats) -> float:
    """Mean squared error over variance, both weighted by count."""
    squared = (received(made, stats.embeds) - stats.embeds).double().square().mean(1)
    return float(stats.shares @ squared) / stats.variance


@pytest.mark.parametrize(
    ("name", "options", "axis", "values"),
    [
        ("quantize", {}, "bits", [1, 2, 4, 6, 8]),
        ("quantize", {"group": 24}, "bits", [2, 4, 6, 8]),
        ("quantize", {"bits": 3}, "group", [24, 12, 6]),
        ("rvq", {"bits": 3}, "stages", [1, 2, 4, 8]),
        ("rvq", {"stages": 2}, "bits", [1, 3, 5]),
        ("rvq", {"stages": 2, "bits": 3}, "groups", [1, 2, 6]),
    ],
)
def test_error_falls_as_bits_rise(
    name: str, options: dict[str, Any], axis: str, values: list[int], stats: TokenStats
) -> None:
    made = [fitted(name, stats, **options, **{axis: value}) for value in values]
    errors = [error(each, stats) for each in made]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 1.5
    costs = [float(each.bits(Code(stats.embeds[None], MASK))[0, 0]) for each in made]
    assert costs == sorted(costs)


@pytest.mark.parametrize(
    ("name", "options", "bits"),
    [
        ("quantize", INT4, 24 * 4),
        ("quantize", VECTOR_WISE, 24 * 4 + 16),
        ("quantize", GROUP_WISE, 24 * 4 + 5 * 16),
        ("rvq", RESIDUAL, 3 * 3),
        ("rvq", PRODUCT, 5 * 4),
    ],
)
def test_the_bits_are_those_of_the_symbols(
    name: str, options: dict[str, Any], bits: int, stats: TokenStats
) -> None:
    made = fitted(name, stats, **options)
    unseen = stats.embeds.std() * torch.randn(5000, 24, generator=torch.Generator().manual_seed(1))
    rows = torch.cat([stats.embeds, unseen])
    mask = torch.ones(1, len(rows), dtype=torch.bool)
    assert set(made.bits(made(rows[None], mask))[0].tolist()) == {bits}
    symbols = made.symbols(rows[None], mask)[0]
    values = [len(column.unique()) for column in symbols.T]
    scales = 0 if name == "rvq" or "group" not in options else -(-24 // options["group"])
    assert max(values[: len(values) - scales]) <= 2 ** options["bits"]
    assert (len(values) - scales) * options["bits"] + scales * 16 == bits
    same, which = torch.unique(symbols, dim=0, return_inverse=True)  # equal symbols, equal vectors
    vectors = received(made, rows)
    first = torch.zeros(len(same), dtype=torch.long).scatter_(0, which, torch.arange(len(rows)))
    assert torch.equal(vectors, vectors[first[which]])


def test_symbols_that_are_rarely_used_cost_less_entropy_coded(stats: TokenStats) -> None:
    made = fitted("rvq", stats, stages=1, bits=2)
    decoder = load_plugins().get("adapter", "linear")
    bottleneck = Bottleneck(made, decoder(decoder.Config(), 24, 24))
    used = (
        torch.bincount(made.symbols(stats.embeds[None], MASK)[0, :, 0], stats.weights) / stats.weights.sum()
    )
    assert symbol_entropy(bottleneck, stats) == pytest.approx(float(-(used * used.log2()).sum()))
    one = TokenStats(stats.ids[:1], stats.weights[:1], stats.embeds[:1])
    assert symbol_entropy(bottleneck, one) == 0
    assert symbol_entropy(Bottleneck(fitted("pca", stats), decoder(decoder.Config(), 3, 24)), stats) is None


def test_each_dimension_goes_to_its_nearest_level(stats: TokenStats) -> None:
    made = fitted("quantize", stats, bits=3)
    levels = made.low + torch.arange(8)[:, None] * made.step  # [8, 24]
    nearest = (received(made, stats.embeds) - stats.embeds).abs()
    torch.testing.assert_close(nearest, (stats.embeds[:, None] - levels).abs().amin(1), rtol=1e-4, atol=1e-8)


def test_clipping_the_rare_is_better_than_covering_all(stats: TokenStats) -> None:
    embeds, counts = stats.embeds.clone(), stats.weights.clone()
    embeds[0] += 1  # one token far away …
    counts[0] = 1e-3  # … that hardly ever comes
    stats = replace(stats, embeds=embeds, weights=counts)
    low, high = embeds.amin(0), embeds.amax(0)
    step = (high - low) / 15
    covering = low + ((embeds - low) / step).round() * step
    whole_range = stats.shares @ (covering - embeds).double().square().mean(1)
    assert error(fitted("quantize", stats, **INT4), stats) * stats.variance < 0.1 * float(whole_range)


def test_a_group_with_an_outlier_does_not_blur_the_others(stats: TokenStats) -> None:
    embeds = stats.embeds.clone()
    embeds[:, 0] = 1
    outlying = replace(stats, embeds=embeds)
    whole, apart = (fitted("quantize", outlying, bits=4, group=group) for group in (24, 4))
    rest = [(received(made, embeds) - embeds)[:, 4:].norm() for made in (whole, apart)]
    assert rest[1] < 0.2 * rest[0]


def test_a_stage_sends_the_codeword_nearest_to_what_is_left(stats: TokenStats) -> None:
    made = fitted("rvq", stats, stages=2, bits=4, groups=5)  # widths 5, 5, 5, 5, 4
    rest, sums = stats.embeds.clone(), torch.zeros_like(stats.embeds)
    for book in made.codebooks.detach() * made.scale:
        for rows, words, total in zip(*(part.tensor_split(5, 1) for part in (rest, book, sums)), strict=True):
            chosen = words[(rows[:, None] - words).square().sum(-1).argmin(1)]
            rows -= chosen
            total += chosen
    torch.testing.assert_close(received(made, stats.embeds), sums)


def test_fewer_tokens_than_codewords_lose_nothing(stats: TokenStats) -> None:
    few = TokenStats(stats.ids[:7], stats.weights[:7], stats.embeds[:7])
    torch.testing.assert_close(received(fitted("rvq", few, bits=3), few.embeds), few.embeds)
    one = replace(stats, embeds=torch.full((200, 24), 0.3))  # a dimension without spread has no range
    for name, options in OPTIONS:
        torch.testing.assert_close(
            received(fitted(name, one, **options), one.embeds), one.embeds, rtol=4e-3, atol=0
        )


def test_counts_decide_what_is_close(stats: TokenStats) -> None:
    often = replace(stats, weights=torch.where(stats.ids < 20, 1000.0, 1.0).double())
    for name, options in (("quantize", INT4), ("rvq", PRODUCT)):
        of_counts = fitted(name, often, **options)
        of_none = fitted(name, replace(often, weights=often.weights**0), **options)
        assert error(of_counts, often) < error(of_none, often)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_a_trained_compressor_in_front_learns_through_the_rounding(
    name: str, options: dict[str, Any], stats: TokenStats
) -> None:
    made = fitted(name, stats, **options)
    encoder = nn.Linear(24, 24)
    codes = encoder(stats.embeds[None])
    codes.retain_grad()
    vectors = made(codes, MASK).vectors
    pull = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2))
    (vectors * pull).sum().backward()
    assert torch.equal(codes.grad, pull)
    assert encoder.weight.grad is not None
    assert encoder.weight.grad.any()


def test_codebooks_learn_what_the_adapter_needs(stats: TokenStats) -> None:
    made = fitted("rvq", stats, **RESIDUAL)
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    wanted = stats.embeds.flip(1)  # nothing that k-means could know
    errors = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = (made(stats.embeds[None], MASK).vectors[0] - wanted).square().mean()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.8 * errors[0]


def test_nearest_rows_are_those_of_a_plain_search() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, rows = torch.randn(300, 6, generator=generator), torch.randn(50, 6, generator=generator)
    rows[7] = rows[3]
    plain = torch.cdist(vectors, rows).square().sort(dim=1, stable=True)
    ids, distances = nearest_rows(vectors, rows, 3)
    torch.testing.assert_close(distances, plain.values[:, :3], rtol=1e-4, atol=1e-5)
    assert torch.equal(ids, plain.indices[:, :3])
    assert int(nearest_rows(rows[7:8], rows)[0]) == 3


def test_a_report_shows_the_entropy_coded_rate_beside(invoke: Invoke) -> None:
    settings = settings_args([*SMALL, "train.steps=0", "compressor.bits=5"])
    result = invoke("train", "--compressor", "rvq", "--adapter", "linear", "--output", "run", *settings)
    assert "entropy-coded)" in result.printed

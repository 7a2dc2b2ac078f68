"""The adapter: its start, its optimum, and what it gains over a linear decoder."""

from typing import Any

import torch
from torch import Tensor

from stage1 import Code, TokenStats
from stage1.testing import AdapterSuite
from stage1_additive.additive import Additive, AdditiveConfig


class TestAdditive(AdapterSuite):
    component = Additive


class TestTwoKnots(AdapterSuite):
    component = Additive

    @property
    def options(self) -> dict[str, Any]:
        return {"knots": 2, "ridge": 1e-3}


def warm(encode: Any, stats: TokenStats, **options: Any) -> Additive:
    adapter = Additive(AdditiveConfig(**options), encode(stats.embeds).shape[1], 12)
    adapter.warm_start(encode, stats)
    return adapter


def reconstructed(adapter: Additive, codes: Tensor) -> Tensor:
    mask = torch.ones(1, len(codes), dtype=torch.bool)
    embeds: Tensor = adapter(Code(codes[None], mask))[0]
    return embeds.detach()


def error(adapter: Additive, encode: Any, stats: TokenStats) -> float:
    squared = (reconstructed(adapter, encode(stats.embeds)) - stats.embeds).double().square().mean(1)
    return float(stats.shares @ squared) / stats.variance


def test_two_knots_are_the_linear_decoder(stats: TokenStats) -> None:
    adapter = warm(lambda rows: rows[:, :4], stats, knots=2, ridge=1e-12)
    root = stats.shares.sqrt()[:, None]
    inputs = torch.cat([stats.embeds[:, :4].double(), torch.ones(400, 1)], dim=1)
    solution = torch.linalg.lstsq(root * inputs, root * stats.embeds.double()).solution
    expected = (inputs @ solution).float()
    torch.testing.assert_close(reconstructed(adapter, stats.embeds[:, :4]), expected, rtol=1e-3, atol=1e-5)


def test_curves_reconstruct_what_straight_lines_cannot(stats: TokenStats) -> None:
    bent = stats.embeds.clone()
    bent[:, 4:8] = 10 * bent[:, :4].square()
    stats = TokenStats(stats.ids, stats.weights, bent)
    straight, curved = (warm(lambda rows: rows[:, :4], stats, knots=knots) for knots in (2, 16))
    ours, theirs = (reconstructed(adapter, bent[:, :4])[:, 4:8] for adapter in (curved, straight))
    assert (ours - bent[:, 4:8]).norm() < 0.2 * (theirs - bent[:, 4:8]).norm()


def test_a_vector_for_each_level_where_there_are_as_many_knots(stats: TokenStats) -> None:
    low, high = stats.embeds[:, :1].min(), stats.embeds[:, :1].max()

    def encode(rows: Tensor) -> Tensor:
        return low + ((rows[:, :1] - low) / (high - low) * 7).round() * (high - low) / 7

    adapter = warm(encode, stats, knots=8, ridge=1e-9)
    codes = encode(stats.embeds)
    for level in torch.unique(codes):
        members = (codes == level).squeeze(1)
        shares = stats.weights[members] / stats.weights[members].sum()
        mean = (shares @ stats.embeds[members].double()).float()
        found = reconstructed(adapter, level.reshape(1, 1))[0]
        torch.testing.assert_close(found, mean, rtol=1e-3, atol=1e-5)


def test_it_solves_again_what_training_has_moved(stats: TokenStats) -> None:
    def encode(rows: Tensor) -> Tensor:
        return rows[:, :4]

    adapter = warm(encode, stats)
    start = error(adapter, encode, stats)
    assert start < 1
    with torch.no_grad():
        adapter.weight.mul_(0.5)
    assert error(adapter, encode, stats) > start
    adapter.solve_last_layer(encode, stats)
    assert error(adapter, encode, stats) == start


def test_values_beyond_the_last_knot_stay_there(stats: TokenStats) -> None:
    adapter = warm(lambda rows: rows[:, :4], stats)
    edge = (adapter.low + adapter.span)[None]
    torch.testing.assert_close(reconstructed(adapter, edge + 1), reconstructed(adapter, edge))

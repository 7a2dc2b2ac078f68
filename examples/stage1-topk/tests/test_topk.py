"""The compressor on stage1's conformance suite, and what is particular to it."""

import math

import pytest
import torch
from torch import Tensor

from stage1 import Code, ConfigError, TokenStats
from stage1.testing import CompressorSuite
from stage1_topk import TopK, TopKConfig


class TestTopK(CompressorSuite):
    component = TopK

    @property
    def options(self) -> dict[str, int]:
        return {"keep": 1}  # as narrow as the suite counts bits


@pytest.fixture
def stats() -> TokenStats:
    """300 tokens of width 8, each along one of many directions: sparse in no fixed subspace."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 8, generator=generator) * (torch.rand(300, 8, generator=generator) < 0.25)
    return TokenStats(torch.arange(300), torch.ones(300, dtype=torch.float64), rows + 0.01)


def encoded(keep: int, stats: TokenStats) -> tuple[TopK, Code]:
    compressor = TopK(TopKConfig(keep=keep), 8)
    compressor.fit(stats)
    return compressor, compressor(stats.embeds[None], torch.ones(1, 300, dtype=torch.bool))


def test_so_many_values_are_sent_and_paid_for(stats: TokenStats) -> None:
    for keep in (1, 3, 8):
        compressor, code = encoded(keep, stats)
        assert int((code.vectors != 0).sum(-1).max()) == keep
        assert torch.equal(code.vectors, code.vectors.bfloat16().float())
        assert set(compressor.bits(code)[0].tolist()) == {
            16 * keep + math.ceil(math.log2(math.comb(8, keep)))
        }


def test_all_values_are_all_there_is(stats: TokenStats) -> None:
    compressor, code = encoded(8, stats)
    torch.testing.assert_close(compressor.inverse(code)[0], stats.embeds, rtol=0, atol=2e-2)


def test_the_largest_are_the_best_that_this_basis_has(stats: TokenStats) -> None:
    def error(code: Tensor, compressor: TopK) -> float:
        back = compressor.inverse(Code(code, torch.ones(1, 300, dtype=torch.bool)))[0]
        return float((back - stats.embeds).square().mean())

    compressor, code = encoded(2, stats)
    _, whole = encoded(8, stats)
    first_two = whole.vectors * (torch.arange(8) < 2)  # what PCA would send
    assert error(code.vectors, compressor) < 0.8 * error(first_two, compressor)


def test_no_more_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"compressor\.keep: 9 is more than the 8"):
        TopK(TopKConfig(keep=9), 8)

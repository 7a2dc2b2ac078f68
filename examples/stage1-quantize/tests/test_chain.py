"""Behind another compressor."""

from dataclasses import replace

import torch
from torch import Tensor

from stage1 import Compressor, SizeConfig, TokenStats
from stage1.testing import Chain, installed
from stage1_quantize.quantize import Quantize, QuantizeConfig

MASK = torch.ones(1, 400, dtype=torch.bool)


def first(name: str) -> Compressor:
    compressor: Compressor = installed("compressor", name)(SizeConfig(dim=4), 12)
    return compressor


def test_pca_then_quantize_equals_the_two_by_hand(stats: TokenStats) -> None:
    chain = Chain([first("pca"), Quantize(QuantizeConfig(bits=4), 4)])
    chain.fit(stats)
    pca, quantize = first("pca"), Quantize(QuantizeConfig(bits=4), 4)
    pca.fit(stats)
    codes: Tensor = pca(stats.embeds[None], MASK).vectors
    quantize.fit(replace(stats, embeds=codes[0]))
    by_hand = quantize(codes, MASK)
    code = chain(stats.embeds[None], MASK)
    assert torch.equal(code.vectors, by_hand.vectors)
    assert torch.equal(chain.inverse(code), pca.inverse(by_hand))
    assert (chain.code_dim, chain.wire_dtype) == (4, None)
    assert set(chain.bits(code)[0].tolist()) == {16.0}


def test_a_trained_compressor_in_front_learns_through_the_rounding(stats: TokenStats) -> None:
    chain = Chain([first("learned_linear"), Quantize(QuantizeConfig(bits=2), 4)])
    chain.fit(stats)
    decoder = torch.randn(4, 12, generator=torch.Generator().manual_seed(4))
    optimizer = torch.optim.Adam(chain.parameters(), lr=1e-2)
    errors = []
    for _ in range(50):
        optimizer.zero_grad()
        error = (chain(stats.embeds[None], MASK).vectors @ decoder - stats.embeds).square().mean()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.7 * errors[0]

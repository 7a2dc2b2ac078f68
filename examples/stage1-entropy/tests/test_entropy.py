"""Compressor and loss on stage1's conformance suites, and what is particular to them."""

import math

import torch

from stage1 import Code, ComponentConfig, LossInputs, TokenStats
from stage1.testing import CompressorSuite
from stage1_entropy import EntropyCoded, EntropyCodedConfig, Rate


class TestEntropyCoded(CompressorSuite):
    component = EntropyCoded


def test_bits_are_near_the_entropy_of_what_is_sent() -> None:
    uniform = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0)).clamp(1e-6, 1 - 1e-6)
    rows = torch.logit(uniform) * torch.tensor([1.0, 0.1]) + torch.tensor([0.3, -2.0])
    stats = TokenStats(torch.arange(20_000), torch.ones(20_000, dtype=torch.float64), rows)
    coded = EntropyCoded(EntropyCodedConfig(step=0.25), 2)
    coded.fit(stats)
    code = coded(rows[None], torch.ones(1, 20_000, dtype=torch.bool))
    entropy = 0.0
    for column in code.vectors[0].T:
        share = column.unique(return_counts=True)[1] / 20_000
        entropy -= float((share * share.log2()).sum())
    assert math.isclose(float(coded.bits(code).mean()), entropy, rel_tol=0.05)


def test_finer_steps_cost_more_and_lose_less() -> None:
    rows = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    stats = TokenStats(torch.arange(500), torch.ones(500, dtype=torch.float64), rows)
    bits, errors = [], []
    for step in (2.0, 1.0, 0.5, 0.25):
        coded = EntropyCoded(EntropyCodedConfig(step=step), 4)
        coded.fit(stats)
        code = coded(rows[None], torch.ones(1, 500, dtype=torch.bool))
        bits.append(float(coded.bits(code).mean()))
        errors.append(float((code.vectors[0] - rows).square().mean()))
    assert bits == sorted(bits)
    assert errors == sorted(errors, reverse=True)


def test_the_rate_is_what_the_vectors_cost_and_makes_them_cost_less() -> None:
    rows = torch.randn(1, 300, 4, generator=torch.Generator().manual_seed(0)) * 3
    mask = torch.ones(1, 300, dtype=torch.bool)
    coded, scale = EntropyCoded(EntropyCodedConfig(step=0.5), 4), torch.nn.Parameter(torch.ones(()))
    coded.fit(TokenStats(torch.arange(300), torch.ones(300, dtype=torch.float64), rows[0]))
    optimizer = torch.optim.Adam([*coded.parameters(), scale], lr=0.05)
    values = []
    for _ in range(30):
        code: Code = coded(rows * scale, mask)
        bits = coded.bits(code)
        inputs = LossInputs(rows, rows, mask.float(), mask.long(), 1.0, crossed=code._replace(bits=bits))
        value = Rate(ComponentConfig())(inputs)
        assert math.isclose(float(value), float(bits.mean()) / 4, rel_tol=1e-5)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.8 * values[0]
    assert float(scale.detach()) < 1

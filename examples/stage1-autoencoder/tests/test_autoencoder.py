"""The compressor on stage1's conformance suite, and what is particular to it."""

import torch

from stage1 import TokenStats
from stage1.testing import CompressorSuite
from stage1_autoencoder import ConvAutoencoder, ConvAutoencoderConfig


class TestAutoencoder(CompressorSuite):
    component = ConvAutoencoder


class TestNarrow(CompressorSuite):
    component = ConvAutoencoder

    @property
    def options(self) -> dict[str, float]:
        return {"tokens": 3, "ratio": 4, "context": 1}


def fitted(tokens: int) -> tuple[ConvAutoencoder, TokenStats]:
    rows = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) + 1
    stats = TokenStats(torch.arange(60), torch.ones(60, dtype=torch.float64), rows)
    autoencoder = ConvAutoencoder(ConvAutoencoderConfig(tokens=tokens), 6)
    autoencoder.fit(stats)
    return autoencoder, stats


def test_it_starts_as_the_mean_of_the_tokens() -> None:
    autoencoder, stats = fitted(3)
    code = autoencoder(stats.embeds[None], torch.ones(1, 60, dtype=torch.bool))
    means = (stats.embeds.view(20, 3, 6).mean(1) - stats.mean.float()) / stats.variance**0.5
    torch.testing.assert_close(code.vectors[0], means, rtol=0, atol=1e-2)


def test_so_many_tokens_become_one_vector() -> None:
    autoencoder, stats = fitted(4)
    mask = torch.arange(9) < torch.tensor([[9], [8], [1], [0]])
    code = autoencoder(stats.embeds[:36].view(4, 9, 6), mask)
    assert code.mask.sum(1).tolist() == [3, 2, 1, 0]


def test_tokens_that_do_not_cross_are_closed_up() -> None:
    autoencoder, stats = fitted(2)
    gaps = torch.tensor([[False, True, False, True, True, True, False]])
    code = autoencoder(stats.embeds[None, :7], gaps)
    packed = autoencoder(stats.embeds[None, [1, 3, 4, 5]], torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(code.vectors[code.mask], packed.vectors[packed.mask])

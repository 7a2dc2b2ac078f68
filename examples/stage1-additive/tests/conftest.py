"""A small corpus for all tests."""

import pytest
import torch

from stage1 import TokenStats


@pytest.fixture
def stats() -> TokenStats:
    """400 tokens of width 12 with unequal counts, small embeddings and correlated dimensions."""
    generator = torch.Generator().manual_seed(3)
    counts = torch.randint(1, 1000, (400,), generator=generator).double()
    mixing = torch.randn(12, 12, generator=generator)
    embeds = 0.01 * torch.randn(400, 12, generator=generator) @ mixing + 0.02
    return TokenStats(torch.arange(400), counts, embeds)

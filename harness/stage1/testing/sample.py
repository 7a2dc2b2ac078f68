"""What the suites show a component: a small vocabulary with its counts, and padded prompts from it."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from stage1.plugins.tensors import Embedded, TokenStats

WIDTH = 32
"""D, the width of the sample's embeddings."""

VOCABULARY = 640
"""V, rows of the sample's embedding table; four in five of them are in use."""

LENGTHS = ((1,), (9,), (1, 1, 1), (12, 7, 1), (5, 0))
"""Of the prompts in a batch, that shapes are checked with."""

Padding = Literal["left", "right"]
PADDINGS: tuple[Padding, ...] = ("left", "right")

TOLERANCE = 1e-5
"""Of the largest value: matrix products of another shape are summed in another order, which moves the last
bits of float32. Whatever a component does wrong moves far more."""


class Sample(NamedTuple):
    """An embedding table, and the tokens of a corpus."""

    table: Tensor  # [V, D] float32, of values that bfloat16 holds exactly
    stats: TokenStats


def make_sample(width: int = WIDTH) -> Sample:
    """Embeddings of this width, off centre and with strongly unequal counts and directions, as Llama's are.

    They are drawn anew at each call, so that a component that writes into them harms no other check.
    """
    generator = torch.Generator().manual_seed(width)
    mixing = torch.randn(width, width, generator=generator) * torch.logspace(0, -1.5, width)
    table = 0.02 * torch.randn(VOCABULARY, width, generator=generator) @ mixing + 0.01
    table = table.bfloat16().float()
    ids = torch.arange(VOCABULARY)
    ids = ids[ids % 5 > 0]
    counts = torch.randint(1, 1000, (len(ids),), generator=generator).double()
    gradients = torch.randn(width, width, generator=generator).double() * torch.logspace(0, -1, width)
    return Sample(table, TokenStats(ids, counts, table[ids], lambda _: gradients.T @ gradients))


def make_batch(
    lengths: Sequence[int] = (12, 7, 1), padding: Padding = "left", width: int = WIDTH
) -> Embedded:
    """Prompts of these lengths from the sample; padding is token 0, as it is in training and evaluation."""
    table = make_sample(width).table
    position = torch.arange(max(1, *lengths))
    count = torch.tensor(lengths)[:, None]
    mask = position >= len(position) - count if padding == "left" else position < count
    generator = torch.Generator().manual_seed(len(lengths))
    ids = torch.randint(1, len(table), mask.shape, generator=generator) * mask
    return Embedded(table[ids], mask)


def poisoned(embeds: Tensor, mask: Tensor) -> Tensor:
    """`embeds` [B, L, D] with absurd values where `mask` is false; finite, as all that a run passes on is."""
    return torch.where(mask[..., None], embeds, -1e3 * embeds.abs().max())


def same(one: Tensor, two: Tensor) -> bool:
    """Whether two results agree but for the order in which float32 was summed."""
    if one.shape != two.shape:
        return False
    scale = float(two.abs().max()) if two.numel() else 0.0
    return bool(torch.allclose(one, two, rtol=0, atol=TOLERANCE * scale))


def through_file(module: nn.Module) -> dict[str, Tensor]:
    """A module's state as a checkpoint brings it back."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    return load(save(tensors))

"""A bottleneck whose code is shorter than the prompt."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from conftest import small_config
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.plugins import load_plugins, resolve
from stage1.plugins.interfaces import ComponentConfig, Compressor
from stage1.plugins.tensors import Code


def halved(embeds: Tensor, mask: Tensor) -> Code:
    """The mean of every two neighbours that cross, or the one that has no other beside it."""
    if mask.shape[1] % 2:
        embeds, mask = pad(embeds, (0, 0, 0, 1)), pad(mask, (0, 1))
    two, kept = (torch.unflatten(part, 1, (-1, 2)) for part in (embeds, mask))
    count = kept.sum(2)
    return Code((two * kept[..., None]).sum(2) / count.clamp(min=1)[..., None], count > 0)


class Pairs(Compressor):
    """Sends the mean of every two neighbouring vectors: half as many as there are positions."""

    name = "pairs"
    tokenwise = False
    changes_length = True

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        return halved(embeds, mask)

    def bits(self, code: Code) -> Tensor:
        return super().bits(code) + 3


def pairs(width: int) -> Bottleneck:
    """`Pairs` with nothing to reconstruct: half the vectors reach the LLM."""
    config = small_config("compressor=identity", "adapter=identity")
    bottleneck = Bottleneck.build(resolve(config, load_plugins()), "free", width, 0)
    bottleneck.compressor = Pairs(ComponentConfig(), width)
    return bottleneck.requires_grad_(False).eval()

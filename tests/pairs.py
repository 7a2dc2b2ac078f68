"""A bottleneck whose code is shorter than the prompt."""

import torch
from torch import Tensor

from conftest import small_config
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.plugins import load_plugins, resolve
from stage1.plugins.interfaces import ComponentConfig, Compressor
from stage1.plugins.tensors import Code


class Pairs(Compressor):
    """Sends the mean of every two neighbouring vectors: half as many as there are positions."""

    name = "pairs"
    tokenwise = False
    changes_length = True

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        even, odd = embeds[:, ::2], embeds[:, 1::2]
        vectors, sent = even.clone(), mask[:, ::2].clone()
        both = mask[:, 1::2]
        vectors[:, : odd.shape[1]] = torch.where(
            both[..., None], (even[:, : odd.shape[1]] + odd) / 2, even[:, : odd.shape[1]]
        )
        return Code(vectors, sent)

    def bits(self, code: Code) -> Tensor:
        return super().bits(code) + 3


def pairs(width: int) -> Bottleneck:
    """`Pairs` with nothing to reconstruct: half the vectors reach the LLM."""
    config = small_config("compressor=identity", "adapter=identity")
    bottleneck = Bottleneck.build(resolve(config, load_plugins()), "free", width, 0)
    bottleneck.compressor = Pairs(ComponentConfig(), width)
    return bottleneck.requires_grad_(False).eval()

"""What the losses are shown of a batch: the one place where `LossInputs` are put together."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stage1.bottleneck.batches import Batch
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.splice import pack, splice
from stage1.llm.states import FrozenLLM
from stage1.plugins.tensors import Code, Embedded, LLMOutputs, LossInputs

Cross = Callable[[Tensor, Tensor], tuple[Code, Tensor]]
"""Embeddings [B, L, D] and what crosses of them [B, L] to code and reconstructed embeddings [B, M, D]."""


class RoundTrip(nn.Module):
    """A bottleneck as training sees it: a `Cross` whose gradients several processes can average."""

    def __init__(self, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.bottleneck = bottleneck

    def forward(self, embeds: Tensor, mask: Tensor) -> tuple[Code, Tensor]:
        """See `Cross`."""
        code = self.bottleneck.encode(embeds, mask)
        return code, self.bottleneck.decode(code, embeds)


@dataclass(frozen=True)
class Presenter:
    """Shows batches to the losses.

    Attributes:
        variance: of the embeddings, the unit of `recon`.
        special: [S] ids of the special tokens.
        packed: the compressor changes the length.
        llm: the LLM, where a loss reads it.
    """

    variance: float
    special: Tensor
    packed: bool = False
    llm: FrozenLLM | None = None

    @property
    def shared(self) -> int:
        """Tokens in front of every prompt that the LLM has read once, and batches leave out."""
        return self.llm.shared if self.llm else 0

    def __call__(self, batch: Batch, cross: Cross) -> LossInputs:
        """What the losses see of `batch` when its embeddings take the way `cross`; not of its `tokens`."""
        packed = (batch.embeds, batch.cross) if not self.packed else pack(batch.embeds, batch.cross)
        code, reconstructed = cross(*packed)
        outputs = None if self.llm is None else self._read(self.llm, batch, code, reconstructed)
        return LossInputs(
            batch.embeds, reconstructed, batch.weights, batch.ids, self.variance, outputs, crossed=code
        )

    def both(self, batch: Batch, cross: Cross) -> tuple[LossInputs, LossInputs | None]:
        """What the losses see of `batch`, and what token-wise ones see of the tokens beside its prompts."""
        tokens = None if batch.tokens is None else self.apart(batch.tokens, cross)
        return self(batch, cross), tokens

    def apart(self, tokens: Batch, cross: Cross) -> LossInputs:
        """What token-wise losses see of distinct tokens, which the LLM does not read."""
        return replace(self, llm=None)(tokens, cross)

    def _read(self, llm: FrozenLLM, batch: Batch, code: Code, reconstructed: Tensor) -> LLMOutputs:
        original = Embedded(batch.embeds, batch.attention)
        spliced = splice(
            original, batch.cross, lambda *_: (reconstructed, code.mask), packed=self.packed, padding="right"
        )
        return LLMOutputs(
            llm,
            llm.head,
            original,
            spliced,
            batch.ordinary(self.special),
            batch.answers,
            counterparts(batch, spliced.attention) if self.packed else None,
        )


def counterparts(batch: Batch, reconstructed: Tensor) -> Tensor:
    """[B, L] where the positions of `batch` are in prompts whose length the compressor changed, −1: nowhere.

    `reconstructed` [B, M] is their mask, right-padded, and `splice` has put them together: raw positions in
    front, the code's vectors, then the other raw positions. The last one that crosses has the last vector.
    """
    raw, started = batch.attention & ~batch.cross, batch.cross.cumsum(1) > 0
    behind = _from_here_on(raw & started)
    end = reconstructed.sum(1, keepdim=True)  # [B, 1]
    own = torch.arange(raw.shape[1], device=raw.device).expand_as(behind)
    places = own.where(raw & ~started, (end - behind).where(raw & started, -1))
    last = batch.cross & (_from_here_on(batch.cross) == 1)
    return (end - behind[:, :1] - 1).expand_as(places).where(last, places)


def _from_here_on(mask: Tensor) -> Tensor:
    """[B, L] how often `mask` [B, L] is true from each position to the end."""
    return mask.flip(1).cumsum(1).flip(1)

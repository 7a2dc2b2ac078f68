"""Several compressors as one: each squeezes the code of the one before."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from stage1.plugins.blame import expect_code, expect_vectors
from stage1.plugins.interfaces import ComponentConfig, Compressor
from stage1.plugins.tensors import Code, TokenStats


class Chain(Compressor):
    """Compressors one behind the other; only the last one's code crosses the wire.

    Each stage gets the vectors [B, M, d] of the one before as its embeddings, with their mask, unrounded.
    Width, wire type and bits of a value are the last stage's. The side bits of all stages are sent, so they
    add up: position by position, and where a stage changes the length, all that a prompt's vectors had
    gathered before it goes to the first vector that is sent of that prompt.

    Args:
        stages: at least one, each built for the `code_dim` of the one before.
    """

    def __init__(self, stages: Sequence[Compressor]) -> None:
        super().__init__(ComponentConfig(), stages[0].embed_dim)
        self.stages: Sequence[Compressor] = torch.nn.ModuleList(stages)  # type: ignore[assignment]
        self.name = "+".join(stage.name for stage in stages)  # type: ignore[misc]  # a plugin's is its class's
        self.tokenwise = all(stage.tokenwise for stage in stages)
        self.changes_length = any(stage.changes_length for stage in stages)
        self.wire_dtype = stages[-1].wire_dtype

    @property
    def code_dim(self) -> int:
        """d, the width of the last stage's code."""
        return self.stages[-1].code_dim

    @property
    def bits_per_value(self) -> float:
        """Bits charged for each value of the last stage's code."""
        return self.stages[-1].bits_per_value

    @torch.no_grad()
    def fit(self, stats: TokenStats) -> None:
        """Fit stage by stage, each to the codes of the tokens so far.

        Behind a stage that is not token-wise a token has no code of its own: the rest is left as built.
        """
        self.stages[0].fit(stats)
        for before, stage in pairwise(self.stages):
            if not before.tokenwise:
                return
            rows = stats.embeds[None]  # [1, U, d]
            mask = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
            codes = expect_code(before, before(rows, mask))
            stats = replace(stats, embeds=codes.vectors[0])
            stage.fit(stats)

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        """Compress `embeds` [B, L, D] at the positions where `mask` [B, L] is true, stage by stage."""
        code = expect_code(self.stages[0], self.stages[0](embeds, mask))
        for stage in self.stages[1:]:
            sent = code
            code = expect_code(stage, stage(sent.vectors, sent.mask))
            gathered = sent.side_bits
            if stage.changes_length:
                first = code.mask & (code.mask.cumsum(1) == 1)  # [B, M]
                gathered = first * (gathered * sent.mask).sum(1, keepdim=True)
            code = code._replace(side_bits=code.side_bits + gathered)
        return code

    def inverse(self, code: Code) -> Tensor:
        """Back through the stages' own decoders: [B, M, d] to [B, M, D].

        Raises:
            NotImplementedError: one of them knows none.
        """
        for stage in reversed(self.stages):
            rebuilt = expect_vectors(stage, "inverse", stage.inverse(code), code.mask, stage.embed_dim)
            code = code._replace(vectors=rebuilt)
        return code.vectors

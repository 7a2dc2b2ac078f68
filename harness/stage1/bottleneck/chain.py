"""Several compressors as one: each squeezes the code of the one before."""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from stage1.plugins.blame import expect_code, expect_vectors
from stage1.plugins.interfaces import ComponentConfig, Compressor
from stage1.plugins.tensors import Code, TokenStats
from stage1.progress import SILENT, Progress


def fit(compressor: Compressor, stats: TokenStats, *, seed: int, progress: Progress) -> None:
    """Call the compressor's `fit` with those of `seed` and `progress` that it names."""
    offered: dict[str, Any] = {"seed": seed, "progress": progress}
    named = inspect.signature(compressor.fit).parameters
    compressor.fit(stats, **{name: value for name, value in offered.items() if name in named})


class Chain(Compressor):
    """Compressors one behind the other; only the last one's code crosses the wire.

    Each stage gets the vectors [B, M, d] of the one before as its embeddings, with their mask, unrounded.
    Width, wire type and bits are the last stage's.

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

    def bits(self, code: Code) -> Tensor:
        """[B, M] what each vector of the last stage's code costs."""
        return self.stages[-1].bits(code)

    def fit(self, stats: TokenStats, *, seed: int = 0, progress: Progress = SILENT) -> None:
        """Fit stage by stage, each to the codes of the tokens so far.

        Behind a stage that is not token-wise a token has no code of its own: the rest is left as built.
        """
        fit(self.stages[0], stats, seed=seed, progress=progress)
        for before, stage in pairwise(self.stages):
            if not before.tokenwise:
                return
            rows = stats.embeds[None]  # [1, U, d]
            mask = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
            with torch.no_grad():
                codes = expect_code(before, before(rows, mask))
            stats = replace(stats, embeds=codes.vectors[0], estimate=None)
            fit(stage, stats, seed=seed, progress=progress)

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        """Compress `embeds` [B, L, D] at the positions where `mask` [B, L] is true, stage by stage."""
        return self._through(self.stages, embeds, mask)

    def symbols(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """[B, M, n] what the last stage sends."""
        code = self._through(self.stages[:-1], embeds, mask)
        return self.stages[-1].symbols(code.vectors, code.mask)

    @staticmethod
    def _through(stages: Iterable[Compressor], embeds: Tensor, mask: Tensor) -> Code:
        code = Code(embeds, mask)
        for stage in stages:
            code = expect_code(stage, stage(code.vectors, code.mask))
        return code

    def inverse(self, code: Code) -> Tensor:
        """Back through the stages' own decoders: [B, M, d] to [B, M, D].

        Raises:
            NotImplementedError: one of them knows none.
        """
        for stage in reversed(self.stages):
            reconstructed = expect_vectors(stage, "inverse", stage.inverse(code), code.mask, stage.embed_dim)
            code = code._replace(vectors=reconstructed)
        return code.vectors

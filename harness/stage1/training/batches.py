"""Training batches, from either of two sources with the same expected gradient.

A token-wise bottleneck under token-wise losses sees only *which token*: `TokenBatches` draws from the
histogram of tokens in use. Everything else needs whole prompts: `PromptBatches`, where a token-wise
bottleneck has such tokens beside the prompts, for its token-wise losses: what it knows of the tokens that
the prompts of a step do not hold would be forgotten otherwise. A batch is a pure
function of (seed, step), so a resumed run draws what an uninterrupted one would have drawn.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stage1.bottleneck.batches import Batch, collate
from stage1.data.prompts import Prompt
from stage1.plugins.tensors import TokenStats


class TokenBatches:
    """Distinct tokens, weighted (all of them, where they fit) or drawn by their share."""

    def __init__(self, rows: TokenStats, size: int, seed: int, *, rank: int = 0, processes: int = 1) -> None:
        self.rows, self.shares, self.size, self.seed = rows, rows.shares, size, seed
        self.rank, self.processes = rank, processes
        # All tokens at once give the exact gradient; of several processes, each has its part of them.
        self.everything = processes <= len(rows.ids) <= size

    def batch(self, step: int) -> Batch:
        """The batch of optimiser step `step`; this process's part of it where there are several."""
        if self.everything:
            picked = torch.arange(self.rank, len(self.rows.ids), self.processes, device=self.shares.device)
            weights = self.shares[picked].float()
        else:
            generator = torch.Generator(self.shares.device).manual_seed(step_seed(self.seed, step))
            drawn = torch.multinomial(self.shares, self.size, replacement=True, generator=generator)
            picked = drawn[self.rank :: self.processes]
            weights = torch.ones(len(picked), device=picked.device)
        all_true = torch.ones(1, len(picked), dtype=torch.bool, device=picked.device)
        embeds = self.rows.embeds[picked]
        fields = (self.rows.ids[picked][None], embeds[None], all_true, all_true, weights[None])
        return Batch(*fields, whole_prompts=False)


class PromptBatches:
    """Whole prompts, right-padded, in an order shuffled anew each epoch.

    `weight` [V] is what an occurrence of each token counts; `answers` are the prompts' gold continuations as
    token ids, in the same order; `tokens` draws what stands beside the prompts, `Batch.tokens`.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        table: Tensor,
        weight: Tensor,
        size: int,
        seed: int,
        *,
        answers: Sequence[list[int]] | None = None,
        tokens: TokenBatches | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.prompts, self.table, self.size, self.seed = prompts, table, size, seed
        self.weight, self.answers, self.tokens = weight, answers, tokens
        self.rank, self.processes = rank, processes
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> Batch:
        """As `TokenBatches.batch`."""
        numbers = range(step * self.size + self.rank, (step + 1) * self.size, self.processes)
        picked = [self._shuffled(n) for n in numbers]
        answers = [self.answers[i] for i in picked] if self.answers else None
        batch = collate([self.prompts[i] for i in picked], self.table, self.weight, answers)
        return batch._replace(tokens=self.tokens.batch(step)) if self.tokens else batch

    def _shuffled(self, number: int) -> int:
        epoch, position = divmod(number, len(self.prompts))
        if self._epoch != epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.prompts))
        return int(self._order[position])


Batches = TokenBatches | PromptBatches


def step_seed(seed: int, step: int) -> int:
    """A seed for everything random in one step; neighbouring seeds and steps give unrelated streams."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)

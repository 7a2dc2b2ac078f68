"""Training batches, from either of two sources with the same expected gradient.

A token-wise bottleneck under token-wise losses sees only *which token*: `TokenBatches` draws from the
histogram of tokens in use. Everything else needs whole prompts: `PromptBatches`. A batch is a pure
function of (seed, step), so a resumed run draws what an uninterrupted one would have drawn.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stage1.data import Prompt
from stage1.tensors import Answers, TokenStats


class Batch(NamedTuple):
    """Positions to train on."""

    ids: Tensor  # [B, L]
    embeds: Tensor  # [B, L, D] float32
    attention: Tensor  # [B, L] bool: not padding
    cross: Tensor  # [B, L] bool: crosses the bottleneck
    weights: Tensor  # [B, L] float32: what a position counts, 0 where it does not cross
    whole_prompts: bool = True  # False: distinct tokens side by side
    answers: Answers | None = None  # gold continuations, under a teacher-forced loss

    def ordinary(self, special: Tensor) -> Tensor:
        """[B, L] bool: tokens that are neither padding nor one of the `special` ids [S]."""
        return self.attention & ~torch.isin(self.ids, special)

    @property
    def pieces(self) -> int:
        """The most parts that `split` can make: prompts, or the tokens of a batch without prompts."""
        return len(self.ids) if self.whole_prompts else self.ids.numel()

    def split(self, parts: int) -> Iterator["Batch"]:
        """The batch in `parts` smaller ones, along the prompts or, in a batch of tokens, its positions."""
        dim = 0 if self.whole_prompts else 1
        names = ("ids", "embeds", "attention", "cross", "weights")
        chunks = [getattr(self, name).chunk(parts, dim) for name in names]
        answers = zip(*(field.chunk(parts) for field in self.answers), strict=True) if self.answers else None
        for ids, embeds, attention, cross, weights in zip(*chunks, strict=True):
            own = Answers(*next(answers)) if answers else None
            yield Batch(ids, embeds, attention, cross, weights, self.whole_prompts, own)


class Batches(Protocol):
    """A source of batches."""

    def batch(self, step: int) -> Batch:
        """The batch of optimiser step `step`; this process's part of it where there are several."""
        ...


class TokenBatches:
    """Distinct tokens, weighted (all of them, where they fit) or drawn by their share."""

    def __init__(
        self, stats: TokenStats, shares: Tensor, size: int, seed: int, *, rank: int = 0, processes: int = 1
    ) -> None:
        self.stats, self.shares, self.size, self.seed = stats, shares, size, seed
        self.rank, self.processes = rank, processes
        # All tokens at once give the exact gradient. Several processes average their gradients evenly,
        # which is right for draws, not for slices of unequal weight.
        self.everything = processes == 1 and len(stats.ids) <= size

    def batch(self, step: int) -> Batch:
        """See `Batches`."""
        if self.everything:
            picked = torch.arange(len(self.stats.ids), device=self.shares.device)
            weights = self.shares.float()
        else:
            generator = torch.Generator(self.shares.device).manual_seed(step_seed(self.seed, step))
            drawn = torch.multinomial(self.shares, self.size, replacement=True, generator=generator)
            picked = drawn[self.rank :: self.processes]
            weights = torch.ones(len(picked), device=picked.device)
        all_true = torch.ones(1, len(picked), dtype=torch.bool, device=picked.device)
        embeds = self.stats.embeds[picked]
        fields = (self.stats.ids[picked][None], embeds[None], all_true, all_true, weights[None])
        return Batch(*fields, whole_prompts=False)


class PromptBatches:
    """Whole prompts, left-padded, in an order shuffled anew each epoch.

    `answers` are the prompts' gold continuations as token ids, in the same order.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        table: Tensor,
        stats: TokenStats,
        shares: Tensor,
        size: int,
        seed: int,
        *,
        answers: Sequence[list[int]] | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.prompts, self.table, self.size, self.seed = prompts, table, size, seed
        self.answers = answers
        self.rank, self.processes = rank, processes
        # An occurrence's weight makes a token's total what `shares` asks for, however often it occurs.
        self.weight = torch.zeros(len(table), device=table.device)
        self.weight[stats.ids] = (shares / stats.shares).float()
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> Batch:
        """See `Batches`."""
        numbers = range(step * self.size + self.rank, (step + 1) * self.size, self.processes)
        picked = [self._shuffled(n) for n in numbers]
        answers = [self.answers[i] for i in picked] if self.answers else None
        return collate([self.prompts[i] for i in picked], self.table, self.weight, answers)

    def _shuffled(self, number: int) -> int:
        epoch, position = divmod(number, len(self.prompts))
        if self._epoch != epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.prompts))
        return int(self._order[position])


def in_order(
    prompts: Sequence[Prompt], table: Tensor, size: int, answers: Sequence[list[int]] | None = None
) -> Iterator[Batch]:
    """All prompts, `size` at a time and with their `answers`; every crossing position weighs 1."""
    once = torch.ones(len(table), device=table.device)
    for start in range(0, len(prompts), size):
        part = slice(start, start + size)
        yield collate(prompts[part], table, once, answers[part] if answers else None)


def collate(
    prompts: Sequence[Prompt],
    table: Tensor,
    weight: Tensor,
    answers: Sequence[list[int]] | None = None,
) -> Batch:
    """Left-padded prompts with their embeddings in float32; `weight` [V] is what each token counts."""
    length = max(len(prompt.ids) for prompt in prompts)
    ids = np.zeros((len(prompts), length), dtype=np.int64)
    attention, cross = np.zeros(ids.shape, dtype=bool), np.zeros(ids.shape, dtype=bool)
    for row, prompt in enumerate(prompts):
        start = length - len(prompt.ids)
        ids[row, start:], attention[row, start:], cross[row, start:] = prompt.ids, True, prompt.cross
    tokens, attends, crosses = (torch.from_numpy(a).to(table.device) for a in (ids, attention, cross))
    own = collate_answers(answers, table) if answers else None
    return Batch(tokens, table[tokens].float(), attends, crosses, weight[tokens] * crosses, answers=own)


def collate_answers(answers: Sequence[list[int]], table: Tensor) -> Answers:
    """Right-padded continuations with their embeddings in float32."""
    ids = pad_sequence([torch.tensor(answer) for answer in answers], batch_first=True).to(table.device)
    lengths = torch.tensor([len(answer) for answer in answers], device=table.device)
    mask = torch.arange(ids.shape[1], device=table.device) < lengths[:, None]
    return Answers(ids, table[ids].float(), mask)


def step_seed(seed: int, step: int) -> int:
    """A seed for everything random in one step; neighbouring seeds and steps give unrelated streams."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)

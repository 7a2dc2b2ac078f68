"""Prompts as padded tensors, ready for the bottleneck."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stage1.data.prompts import Prompt, common_prefix
from stage1.plugins.tensors import Answers

PROMPTS_AT_ONCE = 16
"""Prompts measured at a time where their order matters."""


class Batch(NamedTuple):
    """Positions to train on."""

    ids: Tensor  # [B, L]
    embeds: Tensor  # [B, L, D] float32
    attention: Tensor  # [B, L] bool: not padding
    cross: Tensor  # [B, L] bool: crosses the bottleneck
    weights: Tensor  # [B, L] float32: what a position counts, 0 where it does not cross
    whole_prompts: bool = True  # False: distinct tokens side by side
    answers: Answers | None = None  # gold continuations, under a teacher-forced loss
    tokens: "Batch | None" = None  # distinct tokens beside the prompts, for the token-wise terms

    def ordinary(self, special: Tensor) -> Tensor:
        """[B, L] bool: tokens that are neither padding nor one of the `special` ids [S]."""
        return self.attention & ~torch.isin(self.ids, special)

    @property
    def pieces(self) -> int:
        """The most parts that `split` can make: prompts, or the tokens of a batch without prompts."""
        own = len(self.ids) if self.whole_prompts else self.ids.numel()
        return own if self.tokens is None else min(own, self.tokens.pieces)

    def split(self, parts: int) -> Iterator["Batch"]:
        """The batch in `parts` smaller ones, along the prompts or, in a batch of tokens, its positions.

        There are `pieces` of them at most, none of them empty.
        """
        parts, dim = min(parts, self.pieces), 0 if self.whole_prompts else 1
        names = ("ids", "embeds", "attention", "cross", "weights")
        chunks = zip(*(getattr(self, name).tensor_split(parts, dim) for name in names), strict=True)
        answers = zip(*(field.tensor_split(parts) for field in self.answers or ()), strict=True)
        tokens = self.tokens.split(parts) if self.tokens else None
        for ids, embeds, attention, cross, weights in chunks:
            own = Answers(*next(answers)) if self.answers else None
            beside = next(tokens) if tokens else None
            yield Batch(ids, embeds, attention, cross, weights, self.whole_prompts, own, beside)


def in_front(prompts: Sequence[Prompt], table: Tensor) -> Tensor:
    """[P, D] the embeddings of what all prompts begin with, which the LLM need read only once."""
    return table[torch.tensor(common_prefix(prompts), dtype=torch.long)]


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
    """Right-padded prompts with their embeddings in float32; `weight` [V] is what each token counts."""
    length = max(len(prompt.ids) for prompt in prompts)
    ids = np.zeros((len(prompts), length), dtype=np.int64)
    attention, cross = np.zeros(ids.shape, dtype=bool), np.zeros(ids.shape, dtype=bool)
    for row, prompt in enumerate(prompts):
        own = slice(len(prompt.ids))
        ids[row, own], attention[row, own], cross[row, own] = prompt.ids, True, prompt.cross
    tokens, attends, crosses = (torch.from_numpy(a).to(table.device) for a in (ids, attention, cross))
    gold = collate_answers(answers, table) if answers else None
    return Batch(tokens, table[tokens].float(), attends, crosses, weight[tokens] * crosses, answers=gold)


def collate_answers(answers: Sequence[list[int]], table: Tensor) -> Answers:
    """Right-padded continuations with their embeddings in float32."""
    ids = pad_sequence([torch.tensor(answer) for answer in answers], batch_first=True).to(table.device)
    lengths = torch.tensor([len(answer) for answer in answers], device=table.device)
    mask = torch.arange(ids.shape[1], device=table.device) < lengths[:, None]
    return Answers(ids, table[ids].float(), mask)

"""Prompts over their reconstruction: each token, and which token its reconstructed vector is nearest to."""

import gzip
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import count_tokens
from stage1.data.prompts import Prompt
from stage1.data.records import Question
from stage1.evaluation.reconstruction import nearest, positions, read_as
from stage1.llm.tokenizer import token_text
from stage1.session import Session

PROMPTS = 100
"""Prompts that are reconstructed where a vector depends on its neighbours, too: each position on its own."""

Pair = tuple[int, int]


class Reading(NamedTuple):
    """Prompts as they may be read.

    A prompt is a list of numbers of `pairs`: what a token is, and what it is read as (None: as itself).
    """

    pairs: list[tuple[str, str | None]]
    prompts: list[list[int]]  # empty for those that were not reconstructed
    cut: list[int]  # tokens that truncation removed of each prompt
    gzip_bits: float  # per token of the prompts
    note: str = ""

    def data(self, passage: Sequence[int]) -> dict[str, Any]:
        """The same for a file.

        A prompt is as much as it shares with the beginning of the first one about its passage, and the rest.
        """
        first: dict[int, list[int]] = {}
        rests = []
        for prompt, which in zip(self.prompts, passage, strict=True):
            base = first.setdefault(which, prompt)
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(base, prompt, strict=False)))
            rests.append([same, *prompt[same:]])
        return {"pairs": self.pairs, "first": list(first.values()), "rest": rests, "cut": self.cut}


def read_prompts(bottleneck: Bottleneck, session: Session, questions: Sequence[Question]) -> Reading:
    """The prompts of `questions` through the bottleneck; of the LLM its table is enough."""
    prompts = session.prompts(questions)
    one_by_one = not (bottleneck.tokenwise or bottleneck.compressor.changes_length)
    shown = prompts[:PROMPTS] if one_by_one else prompts
    stats = count_tokens(shown, session.table)
    crossing = positions(bottleneck, shown, stats, session.table)
    note = ""
    read: Iterable[Sequence[int]] = [prompt.ids for prompt in shown]
    if crossing is None:
        note = "This compressor changes the number of vectors: no token stands over its reconstruction."
    else:
        found = nearest(crossing.reconstructed, crossing.ids, session.table).euclidean
        read = read_as(bottleneck, shown, crossing, found)
        if len(shown) < len(prompts):
            note = f"The first {len(shown)} prompts are shown over their reconstruction."
    numbers: dict[Pair, int] = {}
    lines = [
        [numbers.setdefault(pair, len(numbers)) for pair in zip(prompt.ids, other, strict=True)]
        for prompt, other in zip(shown, read, strict=True)
    ]
    texts = {token: token_text(session.tokenizer, token) for pair in numbers for token in pair}
    return Reading(
        pairs=[(texts[own], texts[other] if other != own else None) for own, other in numbers],
        prompts=lines + [[] for _ in prompts[len(shown) :]],
        cut=[prompt.lost for prompt in prompts],
        gzip_bits=_gzip_bits(prompts),
        note=note,
    )


def _gzip_bits(prompts: Sequence[Prompt]) -> float:
    """Bits per token of each prompt's text alone; examples in front, known to both sides, cost nothing."""
    texts = [prompt.text for prompt in prompts]
    known = 0
    if prompts[0].around:  # every two texts share what all of them share
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(min(texts), max(texts))))  # noqa: B905
    tokens = sum(len(prompt.ids) - prompt.fixed for prompt in prompts)
    return sum(8 * len(gzip.compress(text[known:].encode(), mtime=0)) for text in texts) / tokens

"""Conditions: what the LLM receives in place of a prompt.

Two are controls at equal cost: what the same bits buy without a bottleneck, and what a wrong code is worth.
A bottleneck that does not beat `truncated`, or does not lose to `shuffled`, has shown nothing.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.splice import Reconstruct
from stage1.bottleneck.statistics import count_tokens
from stage1.data.prompts import Prompt
from stage1.data.records import Question
from stage1.errors import UsageError, suggest
from stage1.evaluation.generation import Embed
from stage1.evaluation.rate import code_bits
from stage1.evaluation.reconstruction import reconstructed_rows
from stage1.plugins.tensors import Embedded, TokenStats
from stage1.runs.journal import sha256
from stage1.session import Session

NAMES = ("text", "raw", "linear", "bottleneck", "mean", "no_context", "truncated", "shuffled")
"""All conditions, in the order in which they are asked and shown."""

NEEDED = ("text", "raw", "bottleneck", "no_context")
"""The conditions that a verdict needs; `linear` and `mean` say more about one run than about differences."""


def chosen(names: Iterable[str]) -> tuple[str, ...]:
    """The conditions called `names`, or `all`, and with them `NEEDED`.

    Raises:
        UsageError: there is no such condition.
    """
    names = {name.strip() for name in names}
    if names == {"all"}:
        return NAMES
    if unknown := sorted(names - {*NAMES}):
        raise UsageError(f"Unknown row {unknown[0]!r}.", suggest(unknown[0], NAMES))
    return tuple(name for name in NAMES if name in {*names, *NEEDED})


class Condition(NamedTuple):
    """One way of presenting the prompts to the LLM."""

    name: str
    prompts: list[Prompt]
    embed: Embed | None  # None: token ids
    key: Any  # JSON: what its answers depend on beside model and prompts; None: they are not kept
    keep: bool = True  # the answers, beyond this evaluation
    known: tuple[str, list[int]] | None = None  # its answers are those of this condition, in this order


def conditions(
    bottleneck: Bottleneck,
    session: Session,
    stats: TokenStats,
    questions: list[Question],
    prompts: list[Prompt],
    wanted: Collection[str] | None = None,
) -> Iterator[Condition]:
    """Those that are wanted, in the order in which they are asked and shown; no other is prepared.

    `text` (token ids) is the ceiling, `raw` (the original embeddings) proves that embeddings are fed in
    correctly, `linear` is the compressor with its own inverse, `bottleneck` the trained adapter, `mean`
    (every compressed position is the mean embedding) and `no_context` (the question alone) are the floors.
    `truncated` (a context as long as its code could pay for) and `shuffled` (the code of another question's
    context) are the controls.

    Args:
        bottleneck: what is judged.
        session: model and configuration.
        stats: the tokens that cross in `prompts`.
        questions: what is asked.
        prompts: the questions as the protocol puts them.
        wanted: their names; None: all there are.
    """
    wanted = NAMES if wanted is None else wanted
    compressed = [bottleneck.magnitude, bottleneck.fingerprint()]
    if "text" in wanted:
        yield Condition("text", prompts, None, ["text"])
    if "raw" in wanted:
        yield Condition("raw", prompts, raw(session), ["raw"])
    if "linear" in wanted:
        embed = through_inverse(bottleneck, session, stats, prompts)
        if embed is not None:
            yield Condition("linear", prompts, embed, ["linear", *compressed], keep=False)
    if "bottleneck" in wanted:
        embed = through(bottleneck, bottleneck.reconstruct, session, stats)
        yield Condition("bottleneck", prompts, embed, ["bottleneck", *compressed], keep=False)
    if "mean" in wanted:
        mean = bottleneck.mean_embedding
        embed = lookup(session, stats, mean.expand_as(stats.embeds))
        yield Condition("mean", prompts, embed, ["mean", sha256(mean.tolist())])
    if "no_context" in wanted:
        yield Condition("no_context", session.prompts(questions, with_context=False), None, ["text"])
    if "truncated" in wanted:
        short = truncated(bottleneck, session, questions, prompts, stats)
        same = ("text", list(range(len(prompts)))) if short == prompts else None
        yield Condition("truncated", short, None, ["text"], known=same)
    if "shuffled" in wanted:
        others = elsewhere(questions)
        if session.config.scope == "prompt":
            wrong = [prompts[other] for other in others]
            yield Condition("shuffled", wrong, None, None, known=("bottleneck", others))
        else:
            swapped = session.prompts(
                [q._replace(context=questions[i].context) for q, i in zip(questions, others, strict=True)]
            )
            embed = through(bottleneck, bottleneck.reconstruct, session, count_tokens(swapped, session.table))
            yield Condition("shuffled", swapped, embed, ["shuffled", *compressed], keep=False)


def raw(session: Session) -> Embed:
    """The original embeddings."""
    embedding = session.model.llm.get_input_embeddings()
    return lambda ids, cross, attention: Embedded(embedding(ids), attention)


@torch.no_grad()
def through(bottleneck: Bottleneck, reconstruct: Reconstruct, session: Session, stats: TokenStats) -> Embed:
    """The prompts whose tokens `stats` counts, their crossing positions as `reconstruct` says.

    Raises:
        NotImplementedError: `reconstruct` is the compressor's own inverse, and it knows none.
    """
    if bottleneck.tokenwise:
        return lookup(session, stats, reconstructed_rows(reconstruct, stats.embeds))
    table = session.table
    return lambda ids, cross, attention: bottleneck.splice(
        Embedded(table[ids].float(), attention), cross, reconstruct
    )


@torch.no_grad()
def through_inverse(
    bottleneck: Bottleneck, session: Session, stats: TokenStats, prompts: Sequence[Prompt]
) -> Embed | None:
    """The prompts as the compressor's own inverse reconstructs them; None where it knows none."""
    ids = torch.tensor([prompts[0].ids], device=session.device)
    cross = torch.tensor([prompts[0].cross], device=session.device)
    try:
        embed = through(bottleneck, bottleneck.reconstruct_linear, session, stats)
        embed(ids, cross, torch.ones_like(cross))
    except NotImplementedError:
        return None
    return embed


def lookup(session: Session, stats: TokenStats, rows: Tensor) -> Embed:
    """Prompts in which every crossing token of `stats` is its row of `rows` [U, D]."""
    embedding = session.model.llm.get_input_embeddings()
    place = torch.zeros(len(session.table), dtype=torch.long, device=rows.device)
    place[stats.ids] = torch.arange(len(stats.ids), device=rows.device)

    def embed(ids: Tensor, cross: Tensor, attention: Tensor) -> Embedded:
        own = embedding(ids)
        return Embedded(torch.where(cross[..., None], rows[place[ids]].to(own.dtype), own), attention)

    return embed


# -- controls ----------------------------------------------------------------------------------------------


def truncated(
    bottleneck: Bottleneck,
    session: Session,
    questions: Sequence[Question],
    prompts: Sequence[Prompt],
    stats: TokenStats,
) -> list[Prompt]:
    """The prompts with their contexts cut to as many token ids as the bits of their codes pay for.

    A token id costs log2 V bits. A code that costs less than the question alone leaves no context.

    Args:
        bottleneck: whose codes they are.
        session: model and configuration.
        questions: what is asked.
        prompts: the questions with their contexts.
        stats: the tokens that cross in `prompts`.
    """
    id_bits, builder = math.log2(len(session.table)), session.builder()
    shortened = []
    bits = code_bits(bottleneck, prompts, stats, session.table)
    for question, prompt, cost in zip(questions, prompts, bits, strict=True):
        affordable = len(prompt.ids) - sum(prompt.cross) + int(cost / id_bits)
        if affordable >= len(prompt.ids):
            shortened.append(prompt)
            continue
        try:
            [cut] = builder.build([question], session.crossing, max_tokens=affordable)
        except UsageError:  # not even the question
            [cut] = session.prompts([question], with_context=False)
        shortened.append(cut)
    return shortened


def elsewhere(questions: Sequence[Question]) -> list[int]:
    """For each question the number of another one, about another passage where there is one."""
    n = len(questions)
    found = []
    for number, question in enumerate(questions):
        others = ((number + step) % n for step in range(n // 2, n // 2 + n))
        found.append(next((i for i in others if questions[i].context != question.context), number))
    return found

"""Conditions: what the LLM receives in place of a prompt."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.splice import Reconstruct
from stage1.bottleneck.statistics import count_tokens
from stage1.data.prompts import Prompt
from stage1.data.records import Question
from stage1.errors import UsageError, suggest
from stage1.evaluation.controls import elsewhere, shuffled, truncated
from stage1.evaluation.generation import Embed
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
    `truncated` and `shuffled` are controls, see `stage1.evaluation.controls`.

    Args:
        bottleneck: what is judged.
        session: model and configuration.
        stats: the tokens that cross in `prompts`.
        questions: what is asked.
        prompts: the questions as the protocol puts them.
        wanted: their names; None: all there are.
    """
    compressed = [bottleneck.magnitude, bottleneck.fingerprint()]

    def inverse() -> Condition | None:
        embed = through_inverse(bottleneck, session, stats, prompts)
        return embed and Condition("linear", prompts, embed, ["linear", *compressed], keep=False)

    def trained() -> Condition:
        embed = through(bottleneck, bottleneck.reconstruct, session, stats)
        return Condition("bottleneck", prompts, embed, ["bottleneck", *compressed], keep=False)

    def constant() -> Condition:
        mean = bottleneck.mean_embedding
        embed = lookup(session, stats, mean.expand_as(stats.embeds))
        return Condition("mean", prompts, embed, ["mean", sha256(mean.tolist())])

    def cut() -> Condition:
        short = truncated(bottleneck, session, questions, prompts, stats)
        same = ("text", list(range(len(prompts)))) if short == prompts else None
        return Condition("truncated", short, None, ["text"], known=same)

    def wrong() -> Condition:
        if session.config.scope == "prompt":
            others = elsewhere(questions)
            return Condition(
                "shuffled", [prompts[i] for i in others], None, None, known=("bottleneck", others)
            )
        swapped = session.prompts(shuffled(questions))
        embed = through(bottleneck, bottleneck.reconstruct, session, count_tokens(swapped, session.table))
        return Condition("shuffled", swapped, embed, ["shuffled", *compressed], keep=False)

    makers: dict[str, Callable[[], Condition | None]] = {  # in the order of NAMES
        "text": lambda: Condition("text", prompts, None, ["text"]),
        "raw": lambda: Condition("raw", prompts, raw(session), ["raw"]),
        "linear": inverse,
        "bottleneck": trained,
        "mean": constant,
        "no_context": lambda: Condition(
            "no_context", session.prompts(questions, with_context=False), None, ["text"]
        ),
        "truncated": cut,
        "shuffled": wrong,
    }
    for name, make in makers.items():
        if (wanted is None or name in wanted) and (condition := make()) is not None:
            yield condition


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

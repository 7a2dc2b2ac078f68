"""How much the LLM minds an error in each direction of the embedding space."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from stage1.bottleneck.batches import in_front, in_order
from stage1.bottleneck.statistics import count_tokens
from stage1.data.prompts import Prompt
from stage1.evaluation.answers import decisive
from stage1.files import default_cache, read_bytes, remember
from stage1.llm.chunked import POSITIONS, token_cross_entropy
from stage1.llm.states import FrozenLLM
from stage1.plugins.tensors import Embedded, TokenStats
from stage1.runs.journal import sha256
from stage1.session import Session

FORMAT = 1
"""Of what is kept, and of how it is estimated: another number finds nothing of an older version's."""

AT_ONCE = 4
"""Prompts whose gradients are taken at a time: 16 of some 200 tokens take 10 GB with SmolLM2."""


def fitting_stats(session: Session, prompts: Sequence[Prompt]) -> TokenStats:
    """What components are fitted to: the tokens of training prompts, and the LLM's sensitivity on demand."""
    stats = count_tokens(prompts, session.table)
    return replace(stats, estimate=partial(sensitivity, session, prompts))


def sensitivity(session: Session, prompts: Sequence[Prompt], count: int) -> Tensor:
    """`estimated` from the first `count` of `prompts`, [D, D] float64; once for all runs that want the same.

    It takes as long as an evaluation, and what compressors and seeds are compared on is the same for all: it
    is kept in the cache folder, under a hash of everything that decides it.
    """
    some = prompts[:count]
    read = [[prompt.ids, prompt.cross] for prompt in some]
    decides = [FORMAT, decisive(session), session.config.seed, read]
    place = default_cache() / "sensitivity" / f"{sha256(decides)}.safetensors"
    width = session.table.shape[1]
    if (known := _remembered(place, width)) is not None:
        session.progress.note("The LLM's sensitivity was cached.")
        return known.to(session.device)
    found = estimated(session, some)
    remember(place, save({"sensitivity": found.cpu()}))
    return found


def _remembered(place: Path, width: int) -> Tensor | None:
    try:
        found = load(read_bytes(place)).get("sensitivity")
    except (OSError, SafetensorError):
        return None
    if found is None or found.shape != (width, width) or found.dtype != torch.float64:
        return None
    return found if bool(found.isfinite().all()) else None


def estimated(session: Session, prompts: Sequence[Prompt], *, drawn: bool = True) -> Tensor:
    """G = E[g gᵀ], [D, D] float64: g is the gradient, by an input embedding, of −log p(next tokens).

    The next tokens are `drawn` from what the LLM itself says, under the run's seed: G is then the Fisher
    information, which to second order is what an error of the embeddings costs in KL divergence (with the
    tokens that stand in the prompts it only resembles it: Kunstner, Balles and Hennig, 2019). Over the
    positions that cross in the prompts; a position counts by all that it changes further on.
    """
    llm, table = FrozenLLM(session.model.llm), session.table
    generator = torch.Generator(table.device).manual_seed(session.config.seed)
    total = torch.zeros(table.shape[1], table.shape[1], dtype=torch.float64, device=table.device)
    llm.share(in_front(prompts, table))  # examples: no gradient goes there
    positions, some = 0, [prompt.behind(llm.shared) for prompt in prompts]
    with session.progress.task("Measuring the LLM's sensitivity", len(some), "prompts") as advance:
        for batch in in_order(some, table, AT_ONCE):
            with torch.enable_grad():
                embeds = batch.embeds.requires_grad_()
                states = llm(Embedded(embeds, batch.attention)).prompt[:, :-1]
                counted = batch.attention[:, :-1] & batch.ordinary(session.special)[:, 1:]
                states = states[counted]  # [N, D]
                goal = _drawn(states, llm, generator) if drawn else batch.ids[:, 1:][counted]
                loss = token_cross_entropy(states, goal, llm.head).sum()
                (gradient,) = torch.autograd.grad(loss, embeds)
            rows = gradient[batch.cross].double()
            total += rows.T @ rows
            positions += len(rows)
            advance(len(batch.ids))
    return total / positions


@torch.no_grad()
def _drawn(states: Tensor, llm: FrozenLLM, generator: torch.Generator) -> Tensor:
    """[N] a next token for each of `states` [N, D], as probable as the LLM says."""
    parts = (llm.head(part).float().softmax(-1) for part in torch.split(states, POSITIONS))
    return torch.cat([torch.multinomial(part, 1, generator=generator)[:, 0] for part in parts])

"""How much the LLM minds an error in each direction of the embedding space."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from stage1.bottleneck.batches import in_order
from stage1.bottleneck.statistics import count_tokens
from stage1.data.prompts import Prompt, common_prefix
from stage1.llm.chunked import POSITIONS, token_cross_entropy
from stage1.llm.states import FrozenLLM
from stage1.plugins.tensors import Embedded, TokenStats
from stage1.session import Session


def fitting_stats(session: Session, prompts: Sequence[Prompt]) -> TokenStats:
    """What components are fitted to: the tokens of training prompts, and the LLM's sensitivity on demand."""
    stats = count_tokens(prompts, session.table)
    return replace(stats, estimate=partial(sensitivity, session, prompts))


def sensitivity(session: Session, prompts: Sequence[Prompt], count: int) -> Tensor:
    """G = E[g gᵀ], [D, D] float64: g is the gradient, by an input embedding, of −log p(next tokens).

    The next tokens are drawn from what the LLM itself says, under the run's seed: G is then the Fisher
    information, which to second order is what an error of the embeddings costs in KL divergence (with the
    tokens that stand in the prompts it would only resemble it: Kunstner, Balles and Hennig, 2019). Over the
    positions that cross in the first `count` prompts; a position counts by all that it changes further on.
    """
    llm, table = FrozenLLM(session.model.llm), session.table
    generator = torch.Generator(table.device).manual_seed(session.config.seed)
    special = torch.tensor(session.tokenizer.all_special_ids, device=table.device)
    total = torch.zeros(table.shape[1], table.shape[1], dtype=torch.float64, device=table.device)
    positions, some = 0, prompts[:count]
    common = common_prefix(some)  # examples, alike in all: no gradient goes there
    llm.share(table[torch.tensor(common, dtype=torch.long)])
    some = [prompt.behind(len(common)) for prompt in some]
    with session.progress.task("Measuring the LLM's sensitivity", len(some), "prompts") as advance:
        for batch in in_order(some, table, session.config.train.batch_prompts):
            with torch.enable_grad():
                embeds = batch.embeds.requires_grad_()
                states = llm(Embedded(embeds, batch.attention)).prompt[:, :-1]
                states = states[batch.attention[:, :-1] & batch.ordinary(special)[:, 1:]]  # [N, D]
                loss = token_cross_entropy(states, _drawn(states, llm, generator), llm.head).sum()
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

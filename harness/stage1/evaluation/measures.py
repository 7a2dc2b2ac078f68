"""What a bottleneck costs and what it loses, before any LLM is asked: bits and reconstruction error."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stage1.bottleneck.batches import in_order
from stage1.bottleneck.bottleneck import Bottleneck, Rebuild
from stage1.bottleneck.statistics import ReconstructionError
from stage1.data.prompts import Prompt
from stage1.plugins.tensors import CHUNK, Embedded, TokenStats

PROMPTS_AT_ONCE = 16


def rebuilt_rows(rebuild: Rebuild, rows: Tensor) -> Tensor:
    """Rows [U, D] through a token-wise `rebuild`, in chunks that do not depend on any batch size."""
    parts = []
    for chunk in torch.split(rows, CHUNK):
        mask = torch.ones(1, len(chunk), dtype=torch.bool, device=chunk.device)
        parts.append(rebuild(chunk.float()[None], mask)[0][0])
    return torch.cat(parts)


@torch.inference_mode()
def rate(
    bottleneck: Bottleneck, prompts: Sequence[Prompt], stats: TokenStats, table: Tensor
) -> dict[str, float]:
    """Bits per prompt token, and how many times fewer than other ways to send the prompt.

    The prompt's positions that do not cross (BOS always) are sent as token ids, at log2 V bits each.

    Args:
        bottleneck: what encodes them.
        prompts: the test prompts.
        stats: the tokens that cross in them.
        table: the embedding table [V, D].
    """
    tokens = sum(len(prompt.ids) for prompt in prompts)
    raw = tokens - int(stats.counts.sum())
    id_bits = math.log2(len(table))
    crossing = (
        _token_bits(bottleneck, stats) if bottleneck.tokenwise else _code_bits(bottleneck, prompts, table)
    )
    per_token = (crossing + raw * id_bits) / tokens
    text_bits = 8 * sum(len(prompt.text.encode()) for prompt in prompts) / tokens
    return {
        "bits_per_token": per_token,
        "vs_bf16": 16 * table.shape[1] / per_token,
        "vs_token_ids": id_bits / per_token,
        "vs_text": text_bits / per_token,
    }


def _token_bits(bottleneck: Bottleneck, stats: TokenStats) -> float:
    total = 0.0
    for rows, counts in zip(torch.split(stats.embeds, CHUNK), torch.split(stats.counts, CHUNK), strict=True):
        mask = torch.ones(len(rows), 1, dtype=torch.bool, device=rows.device)
        total += float(bottleneck.code_bits(bottleneck.encode(rows[:, None], mask)) @ counts)
    return total


def _code_bits(bottleneck: Bottleneck, prompts: Sequence[Prompt], table: Tensor) -> float:
    total = 0.0

    def counted(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal total
        code = bottleneck.encode(embeds, mask)
        total += float(bottleneck.code_bits(code).sum())
        return bottleneck.decode(code, embeds), code.mask

    for batch in in_order(prompts, table, PROMPTS_AT_ONCE):
        bottleneck.splice(Embedded(batch.embeds, batch.attention), batch.cross, counted)
    return total


@torch.inference_mode()
def reconstruction(
    bottleneck: Bottleneck, prompts: Sequence[Prompt], stats: TokenStats, table: Tensor
) -> dict[str, float] | None:
    """Error of the rebuilt embeddings over all positions that cross; None if the code's length differs.

    Beside `ReconstructionError.summary`, with the variance of these very positions: `token_recovery`, the
    share of positions whose rebuilt vector is nearer (Euclidean) to its own token than to any other.
    """
    if bottleneck.compressor.changes_length:
        return None
    errors, recovered = ReconstructionError(), 0.0
    for original, rebuilt, ids, counts in _pairs(bottleneck, prompts, stats, table):
        errors.add(original, rebuilt, counts)
        recovered += float(recovers(rebuilt, ids, table).double() @ counts.double())
    share = recovered / float(stats.counts.sum())
    return {**errors.summary(stats.variance), "token_recovery": share}


def _pairs(
    bottleneck: Bottleneck, prompts: Sequence[Prompt], stats: TokenStats, table: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Original and rebuilt vectors [N, D], their ids [N] and how often each counts [N]."""
    if bottleneck.tokenwise:
        yield stats.embeds, rebuilt_rows(bottleneck.rebuild, stats.embeds), stats.ids, stats.counts
        return
    for batch in in_order(prompts, table, PROMPTS_AT_ONCE):
        rebuilt = bottleneck(batch.embeds, batch.cross)
        at = batch.cross
        yield batch.embeds[at], rebuilt[at], batch.ids[at], batch.weights[at]


SCORES_AT_ONCE = 2**24
"""Distances computed at a time: 64 MB."""


def recovers(rebuilt: Tensor, ids: Tensor, table: Tensor) -> Tensor:
    """[N] bool: no vocabulary row is nearer to `rebuilt` [N, D] than that of `ids` [N].

    An untrained token may share its row with others: what float32 cannot tell apart counts as equally near.
    """
    norms = torch.cat([rows.float().square().sum(1) for rows in torch.split(table, CHUNK)])  # [V]
    nearest = torch.full((len(rebuilt),), math.inf, device=rebuilt.device)
    own = torch.full_like(nearest, math.inf)
    step = max(1, SCORES_AT_ONCE // max(1, len(rebuilt)))
    for start in range(0, len(table), step):
        rows = table[start : start + step].float()
        # ‖r − t‖² less ‖r‖², which is the same for every row
        scores = norms[start : start + step] - 2 * rebuilt.float() @ rows.T  # [N, step]
        nearest = torch.minimum(nearest, scores.min(1).values)
        here = (ids >= start) & (ids < start + len(rows))
        own[here] = scores[here, ids[here] - start]
    scale = norms[ids] + rebuilt.float().square().sum(1)
    return own <= nearest + 1e-6 * scale

"""What a bottleneck costs: bits, before any LLM is asked."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stage1.bottleneck.batches import PROMPTS_AT_ONCE, in_order
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.data.prompts import Prompt
from stage1.plugins.tensors import CHUNK, Embedded, TokenStats


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

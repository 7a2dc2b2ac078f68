"""What a bottleneck costs, before any LLM is asked: bits, and the microseconds that a token takes."""

import gzip
import math
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stage1.bottleneck.batches import PROMPTS_AT_ONCE, in_order
from stage1.bottleneck.bottleneck import SCALE_BITS, Bottleneck
from stage1.data.datasets import spread
from stage1.data.prompts import Prompt
from stage1.plugins.tensors import CHUNK, Embedded, TokenStats
from stage1.session import Session

ROUNDS = 5
"""Times that a batch is encoded and decoded to time it; the median counts."""


@torch.inference_mode()
def rate(
    bottleneck: Bottleneck, prompts: Sequence[Prompt], stats: TokenStats, table: Tensor
) -> dict[str, float]:
    """Bits per prompt token, and how many times fewer than other ways to send the prompt.

    `entropy_coded`, where a quantiser says what it sends, is the bits per token of `symbol_entropy`.

    The prompt's positions that do not cross (BOS always) are sent as token ids, at log2 V bits each. What
    stands around every question alike, raw examples for one, is known to both sides and counts nowhere.

    Args:
        bottleneck: what encodes them.
        prompts: the test prompts.
        stats: the tokens that cross in them.
        table: the embedding table [V, D].
    """
    tokens = sum(len(prompt.ids) - prompt.fixed for prompt in prompts)
    raw = tokens - int(stats.weights.sum())
    id_bits = math.log2(len(table))
    per_token = (sum(code_bits(bottleneck, prompts, stats, table)) + raw * id_bits) / tokens
    entropy = symbol_entropy(bottleneck, stats)
    text_bits = 8 * sum(len(prompt.text.encode()) - prompt.around for prompt in prompts) / tokens
    return {
        "bits_per_token": per_token,
        "vs_bf16": 16 * table.shape[1] / per_token,
        "vs_token_ids": id_bits / per_token,
        "vs_text": text_bits / per_token,
        **({} if entropy is None else {"entropy_coded": (entropy * (tokens - raw) + raw * id_bits) / tokens}),
    }


def marks(prompts: Sequence[Prompt], table: Tensor) -> dict[str, float]:
    """Bits per token of ways to send prompts that need no bottleneck, each prompt by itself.

    Args:
        prompts: with nothing around the questions.
        table: the embedding table [V, D].
    """
    texts = [prompt.text.encode() for prompt in prompts]
    tokens = sum(len(prompt.ids) for prompt in prompts)
    return {
        "gzip": 8 * sum(len(gzip.compress(text, mtime=0)) for text in texts) / tokens,
        "token_ids": math.log2(len(table)),
        "utf8": 8 * sum(map(len, texts)) / tokens,
        "bf16": 16.0 * table.shape[1],
    }


@torch.inference_mode()
def symbol_entropy(bottleneck: Bottleneck, stats: TokenStats) -> float | None:
    """Bits of a vector if each of its symbols had an ideal entropy coder of its own: Σⱼ H(symbolⱼ).

    H is that of the symbols of the very tokens that `stats` counts: what no coder can go below that codes the
    symbols one by one, and what one comes near to that knows their frequencies. None where the compressor has
    no `symbols`, or they depend on more than their own token.
    """
    if not bottleneck.tokenwise:
        return None
    try:
        chunks = torch.split(stats.embeds, CHUNK)
        parts = [bottleneck.compressor.symbols(rows[:, None], _ones(rows)) for rows in chunks]
    except NotImplementedError:
        return None
    columns, entropy = torch.cat(parts)[:, 0].T, 0.0  # [n, U]
    for column in columns:
        shares = torch.bincount(column.unique(return_inverse=True)[1], stats.shares)
        entropy += float(-(shares * shares.log2()).sum())
    return entropy + (SCALE_BITS if bottleneck.magnitude == "sent" else 0)


@torch.inference_mode()
def code_bits(
    bottleneck: Bottleneck, prompts: Sequence[Prompt], stats: TokenStats, table: Tensor
) -> list[float]:
    """Bits of each prompt's code, without what is sent raw; the arguments are those of `rate`."""
    if not bottleneck.tokenwise:
        return _prompt_bits(bottleneck, prompts, table)
    by_token = torch.zeros(len(table), dtype=torch.float64, device=table.device)
    by_token[stats.ids] = torch.cat(
        [
            bottleneck.code_bits(bottleneck.encode(rows[:, None], _ones(rows)))
            for rows in torch.split(stats.embeds, CHUNK)
        ]
    )
    costs = by_token.cpu().numpy()
    return [float(costs[np.array(p.ids)[np.array(p.cross, dtype=bool)]].sum()) for p in prompts]


def _ones(rows: Tensor) -> Tensor:
    return torch.ones(len(rows), 1, dtype=torch.bool, device=rows.device)


def _prompt_bits(bottleneck: Bottleneck, prompts: Sequence[Prompt], table: Tensor) -> list[float]:
    bits: list[float] = []

    def counted(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        code = bottleneck.encode(embeds, mask)
        bits.extend(bottleneck.code_bits(code).tolist())
        return bottleneck.decode(code, embeds), code.mask

    for batch in in_order(prompts, table, PROMPTS_AT_ONCE):
        bottleneck.splice(Embedded(batch.embeds, batch.attention), batch.cross, counted)
    return bits


@torch.inference_mode()
def timing(bottleneck: Bottleneck, session: Session) -> dict[str, float]:
    """Microseconds that one batch of test prompts takes in the compressor and in the adapter, by token.

    No part of the results, which depend on no machine's load.
    """
    prompts = session.prompts(spread(session.data.test, PROMPTS_AT_ONCE))
    batch = next(iter(in_order(prompts, session.table, PROMPTS_AT_ONCE)))
    embeds, tokens = batch.embeds, int(batch.cross.sum())
    if not tokens:
        return {}
    code = bottleneck.encode(embeds, batch.cross)

    def microseconds(work: Callable[[], Any]) -> float:
        taken = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            work()
            if embeds.is_cuda:
                torch.cuda.synchronize(embeds.device)
            taken.append(time.perf_counter() - started)
        return 1e6 * median(taken) / tokens

    return {
        "encode_us_per_token": microseconds(lambda: bottleneck.encode(embeds, batch.cross)),
        "decode_us_per_token": microseconds(lambda: bottleneck.decode(code, embeds)),
    }

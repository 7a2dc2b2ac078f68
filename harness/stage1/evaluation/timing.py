"""How long a bottleneck takes for a token; no part of the results, which depend on no machine's load."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from stage1.bottleneck.batches import PROMPTS_AT_ONCE, in_order
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.data.datasets import spread
from stage1.session import Session

ROUNDS = 5
"""Times that a batch is encoded and decoded; the median counts."""


@torch.inference_mode()
def timing(bottleneck: Bottleneck, session: Session) -> dict[str, float]:
    """Microseconds that one batch of test prompts takes in the compressor and in the adapter, by token."""
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

"""The gate: do the original embeddings, fed in as embeddings, do what the token ids do?

Where they do not, nothing else counts. What can be compared exactly is compared exactly: the logits at the
last position of the same prompts in the same batch. Whether answers repeat at all is measured beside it, so
that a model that is noisy by itself is not taken for one that is fed wrongly.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from stage1.data.prompts import Prompt
from stage1.evaluation.answers import Answering
from stage1.evaluation.conditions import raw

PROMPTS = 8
"""Prompts looked at: one batch, of the longest and the shortest."""

BEYOND_NOISE = 3
"""Times the noise above which a difference is one: two samples of the same noise are not equally large."""


class Gate(NamedTuple):
    """What the comparison of `raw` with `text` found."""

    prompts: int
    difference: float  # largest |logit(raw) − logit(text)| at the prompts' ends; 0 on a sound machine
    noise: float  # the same between `text` and `text` asked again
    changed: int  # of these prompts' answers, when `text` was asked again; 0 on a CPU without noise

    @property
    def broken(self) -> bool:
        """Embeddings do not do what token ids do, beyond what the model differs from itself."""
        return self.difference > BEYOND_NOISE * self.noise

    @property
    def repeats(self) -> bool:
        """The model gives the same logits and answers when it is asked again."""
        return self.noise == 0 and self.changed == 0


def check(answering: Answering, prompts: Sequence[Prompt]) -> Gate:
    """Compare the embeddings' path with the ids' on some of `prompts`."""
    by_length = sorted(prompts, key=lambda prompt: len(prompt.ids))
    some = by_length[: PROMPTS // 2] + by_length[PROMPTS // 2 :][-PROMPTS // 2 :]
    decoder = answering.decoder
    with answering.progress.task("Comparing embeddings with token ids"):
        decoder.share(prompts)
        embedded = decoder.first_logits(some, raw(answering.session))
        text, again = decoder.first_logits(some, None), decoder.first_logits(some, None)
        noise, changed = _largest(text, again), 0
        # A CPU that repeats the prompts repeats the answers; on a GPU, decoding has kernels of its own.
        if noise or answering.session.device.type != "cpu":
            answers = zip(decoder.answer(some, None), decoder.answer(some, None), strict=True)
            changed = sum(one != other for one, other in answers)
    return Gate(len(some), _largest(embedded, text), noise, changed)


def _largest(one: Tensor, other: Tensor) -> float:
    """Largest difference of two tensors; where one of them alone is no number, the largest there is."""
    same = (one == other) | (one.isnan() & other.isnan())
    apart = (one.double() - other.double()).abs().masked_fill(same, 0.0)
    return float(apart.nan_to_num(nan=sys.float_info.max).max())

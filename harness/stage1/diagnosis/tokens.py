"""Token-level reconstruction: which word of the vocabulary each reconstructed vector is nearest to."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stage1.data.prompts import Prompt
from stage1.diagnosis.case import Case
from stage1.evaluation.reconstruction import Positions, nearest, read_as
from stage1.llm.tokenizer import token_text
from stage1.plugins.tensors import TokenStats
from stage1.session import Session

BUCKETS = {"unseen in training": 0, "1-10": 10, "11-100": 100, "over 100": math.inf}
"""A token's occurrences in the training prompts, up to and including."""
CONFUSIONS, PROMPTS = 15, 3


def measure(case: Case) -> dict[str, Any] | None:
    """Nearest tokens of the reconstructed vectors; None if the compressor changes the length.

    `recovery_euclidean` and `recovery_cosine` are shares of the crossing positions (0 to 1) whose nearest
    token is the original one. Where cosine recovers more, directions are right and lengths are wrong. All
    else goes by Euclidean distance: `by_frequency` the recovery by how often training saw the token (None
    in an empty bucket), `confusions` the most frequent errors, `distinct_nearest` and `top_nearest` whether
    everything turns into a few tokens (hubs), `prompts` the first prompts token by token. Texts are data
    and not escaped.
    """
    crossing = case.positions
    if crossing is None:
        return None
    found = nearest(crossing.reconstructed, crossing.ids, case.session.table)
    euclidean, counts = found.euclidean, crossing.counts
    right = euclidean == crossing.ids
    totals = torch.bincount(euclidean, weights=counts)  # how many positions each token stands for
    first = case.prompts[:PROMPTS]
    return {
        "recovery_euclidean": crossing.share(right),
        "recovery_cosine": crossing.share(found.cosine == crossing.ids),
        "by_frequency": _by_frequency(crossing, right, case.fitted, len(case.session.table)),
        "confusions": _confusions(case, crossing, euclidean),
        "distinct_nearest": len(torch.unique(euclidean)),
        "distinct_original": len(torch.unique(crossing.ids)),
        "top_nearest": {
            "token": token_text(case.session.tokenizer, int(totals.argmax())),
            "share": float(totals.max() / counts.sum()),
        },
        "prompts": readings(case.session, first, read_as(case.bottleneck, first, crossing, euclidean)),
    }


def _by_frequency(
    crossing: Positions, right: Tensor, fitted: TokenStats, vocabulary: int
) -> list[dict[str, Any]]:
    seen = torch.zeros(vocabulary, dtype=torch.float64, device=fitted.ids.device)
    seen[fitted.ids] = fitted.weights
    occurrences = seen[crossing.ids]
    found, above = [], -1.0
    for name, most in BUCKETS.items():
        inside = (occurrences > above) & (occurrences <= most)
        counts = crossing.counts[inside]
        total = float(counts.sum())
        found.append(
            {
                "bucket": name,
                "tokens": len(torch.unique(crossing.ids[inside])),
                "positions": int(total),
                "recovery": float(counts @ right[inside].double()) / total if total else None,
            }
        )
        above = most
    return found


def _confusions(case: Case, crossing: Positions, nearest: Tensor) -> list[dict[str, Any]]:
    wrong = nearest != crossing.ids
    pairs: Counter[tuple[int, int]] = Counter()
    fields = (crossing.ids[wrong], nearest[wrong], crossing.counts[wrong])
    for token, other, count in zip(*(field.tolist() for field in fields), strict=True):
        pairs[token, other] += int(count)
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:CONFUSIONS]
    text = partial(token_text, case.session.tokenizer)
    return [
        {"token": text(token), "read_as": text(other), "positions": count} for (token, other), count in ranked
    ]


def readings(
    session: Session, prompts: Sequence[Prompt], read: Iterable[Sequence[int]]
) -> list[list[dict[str, Any]]]:
    """Each of `prompts` token by token: `original`, `nearest`, whether it `crosses`, whether they `match`.

    Args:
        session: whose tokens they are.
        prompts: the prompts.
        read: the same as they may be read, see `read_as`.
    """
    text = partial(token_text, session.tokenizer)
    return [
        [
            {"original": text(own), "nearest": text(other), "crosses": crosses, "match": other == own}
            for own, other, crosses in zip(prompt.ids, tokens, prompt.cross, strict=True)
        ]
        for prompt, tokens in zip(prompts, read, strict=True)
    ]

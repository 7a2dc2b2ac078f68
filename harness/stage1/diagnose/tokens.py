"""Token-level reconstruction: which word of the vocabulary each rebuilt vector is nearest to."""

import math
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stage1.diagnose.case import Case
from stage1.diagnose.positions import Positions, positions
from stage1.evaluation.measures import SCORES_AT_ONCE
from stage1.plugins.tensors import TokenStats

BUCKETS = {"unseen in training": 0, "1-10": 10, "11-100": 100, "over 100": math.inf}
"""A token's occurrences in the training prompts, up to and including."""
CONFUSIONS, PROMPTS = 15, 3
TIED = 1e-6
"""What float32 cannot tell apart: an untrained token may share its row with others."""


class Nearest(NamedTuple):
    """The vocabulary's nearest tokens [N]; the original one where none is nearer."""

    euclidean: Tensor
    cosine: Tensor


def measure(case: Case) -> dict[str, Any] | None:
    """Nearest tokens of the rebuilt vectors; None if the compressor changes the length.

    `recovery_euclidean` and `recovery_cosine` are shares of the crossing positions (0 to 1) whose nearest
    token is the original one. Where cosine recovers more, directions are right and lengths are wrong. All
    else goes by Euclidean distance: `by_frequency` the recovery by how often training saw the token (None
    in an empty bucket), `confusions` the most frequent errors, `distinct_nearest` and `top_nearest` whether
    everything turns into a few tokens (hubs), `prompts` the first prompts token by token. Texts are data
    and not escaped.
    """
    crossing = positions(case)
    if crossing is None:
        return None
    nearest = _nearest(crossing, case.inputs.table)
    euclidean, counts = nearest.euclidean, crossing.counts
    right = euclidean == crossing.ids
    hub, most = _top(euclidean, counts)
    return {
        "recovery_euclidean": _share(right, counts),
        "recovery_cosine": _share(nearest.cosine == crossing.ids, counts),
        "by_frequency": _by_frequency(crossing, right, case.fitted, len(case.inputs.table)),
        "confusions": _confusions(case, crossing, euclidean),
        "distinct_nearest": len(torch.unique(euclidean)),
        "distinct_original": len(torch.unique(crossing.ids)),
        "top_nearest": {"token": _text(case, hub), "share": most / float(counts.sum())},
        "prompts": _prompts(case, crossing, euclidean),
    }


def _nearest(crossing: Positions, table: Tensor) -> Nearest:
    """The vocabulary is gone through in pieces: N × V scores would not fit into memory."""
    rebuilt, ids = crossing.rebuilt, crossing.ids
    lengths = rebuilt.norm(dim=1)  # [N]
    best = torch.full((2, len(ids)), -math.inf, device=ids.device)
    own, found = best.clone(), torch.zeros_like(best, dtype=torch.long)
    step = max(1, SCORES_AT_ONCE // len(ids))
    for start in range(0, len(table), step):
        rows = table[start : start + step].float()
        squares, products = rows.square().sum(1), rebuilt @ rows.T  # [step], [N, step]
        here = (ids >= start) & (ids < start + len(rows))
        # −‖r − t‖² plus ‖r‖², which is the same for every token; the cosine times ‖r‖, likewise
        pair = (2 * products - squares, products / squares.sqrt().clamp(min=1e-30))
        for which, scores in enumerate(pair):
            own[which, here] = scores[here, ids[here] - start]
            value, at = scores.max(1)
            found[which] = torch.where(value > best[which], at + start, found[which])
            best[which] = torch.maximum(value, best[which])
    scale = torch.stack([table[ids].float().square().sum(1) + lengths.square(), lengths])
    # A vector of zeros has no direction that could be the original's.
    tied = (own >= best - TIED * scale) & torch.stack([torch.ones_like(lengths), lengths]).bool()
    euclidean, cosine = torch.where(tied, ids, found)
    return Nearest(euclidean, cosine)


def _share(right: Tensor, counts: Tensor) -> float:
    """The share of the positions: whole numbers are summed, so that no thread's order of adding shows."""
    return float(counts @ right.double()) / float(counts.sum())


def _top(ids: Tensor, counts: Tensor) -> tuple[int, float]:
    """The token that stands for most positions, and how many."""
    totals = torch.bincount(ids, weights=counts)
    return int(totals.argmax()), float(totals.max())


def _by_frequency(
    crossing: Positions, right: Tensor, fitted: TokenStats, vocabulary: int
) -> list[dict[str, Any]]:
    seen = torch.zeros(vocabulary, dtype=torch.float64, device=fitted.ids.device)
    seen[fitted.ids] = fitted.counts
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
                "recovery": _share(right[inside], counts) if total else None,
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
    return [
        {"token": _text(case, token), "read_as": _text(case, other), "positions": count}
        for (token, other), count in ranked
    ]


def _prompts(case: Case, crossing: Positions, nearest: Tensor) -> list[list[dict[str, Any]]]:
    """Where each token crosses the bottleneck alone, `nearest` is by token, otherwise by position."""
    ids = crossing.ids.tolist() if case.bottleneck.tokenwise else []
    by_token = dict(zip(ids, nearest.tolist(), strict=False))
    by_position = iter(nearest.tolist())
    shown = []
    for prompt in case.prompts[:PROMPTS]:
        tokens = []
        for token, crosses in zip(prompt.ids, prompt.cross, strict=True):
            read = token
            if crosses:
                read = by_token[token] if by_token else next(by_position)
            texts = {"original": _text(case, token), "nearest": _text(case, read)}
            tokens.append({**texts, "crosses": crosses, "match": read == token})
        shown.append(tokens)
    return shown


def _text(case: Case, token: int) -> str:
    """The token as it stands in a text; in the tokenizer's own notation where it is no text by itself."""
    tokenizer = case.inputs.tokenizer
    if token >= len(tokenizer):
        return f"<id {token}>"  # tables are often longer than the vocabulary
    own = str(tokenizer.convert_ids_to_tokens(token))
    if own.startswith("▁"):  # SentencePiece's space, which decoding one token alone drops
        return own.replace("▁", " ")
    text = str(tokenizer.decode([token]))
    return own if not text or "\N{REPLACEMENT CHARACTER}" in text else text

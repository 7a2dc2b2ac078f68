"""What a bottleneck loses, before any LLM is asked: the reconstructed vectors beside the originals."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stage1.bottleneck.batches import PROMPTS_AT_ONCE, in_order
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.splice import Reconstruct
from stage1.bottleneck.statistics import ReconstructionError, count_tokens
from stage1.data.prompts import Prompt
from stage1.plugins.tensors import CHUNK, TokenStats

SCORES_AT_ONCE = 2**24
"""Distances computed at a time: 64 MB."""

TIED = 1e-6
"""What float32 cannot tell apart: an untrained token may share its row with others."""


def reconstructed_rows(reconstruct: Reconstruct, rows: Tensor) -> Tensor:
    """Rows [U, D] through a token-wise `reconstruct`, in chunks that do not depend on any batch size."""
    parts = []
    for chunk in torch.split(rows, CHUNK):
        mask = torch.ones(1, len(chunk), dtype=torch.bool, device=chunk.device)
        parts.append(reconstruct(chunk.float()[None], mask)[0][0])
    return torch.cat(parts)


class Positions(NamedTuple):
    """The positions that cross: each once, or, where a vector depends on its token alone, each token once."""

    ids: Tensor  # [N] the original tokens
    counts: Tensor  # [N] float64: how many positions each stands for
    original: Tensor  # [N, D] float32
    reconstructed: Tensor  # [N, D] float32

    @property
    def shares(self) -> Tensor:
        """[N] float64: each one's share of all positions; sums to 1."""
        return self.counts / self.counts.sum()

    def share(self, which: Tensor) -> float:
        """Share of the positions that `which` [N] (bool) names, 0 to 1.

        Whole numbers are summed, so that no thread's order of adding shows.
        """
        return float(self.counts @ which.double()) / float(self.counts.sum())


@torch.no_grad()
def positions(
    bottleneck: Bottleneck, prompts: Sequence[Prompt], stats: TokenStats, table: Tensor
) -> Positions | None:
    """What crosses in `prompts`, in their order; None if the compressor changes the length.

    Args:
        bottleneck: what reconstructs them.
        prompts: the prompts.
        stats: the tokens that cross in them.
        table: the embedding table [V, D].
    """
    if bottleneck.compressor.changes_length:
        return None
    if bottleneck.tokenwise:
        reconstructed = reconstructed_rows(bottleneck.reconstruct, stats.embeds)
        return Positions(stats.ids, stats.weights, stats.embeds, reconstructed.float())
    ids, rows = [], []
    for batch in in_order(prompts, table, PROMPTS_AT_ONCE):
        ids.append(batch.ids[batch.cross])
        rows.append(bottleneck(batch.embeds, batch.cross)[batch.cross].float())
    crossing = torch.cat(ids)
    once = torch.ones(len(crossing), dtype=torch.float64, device=crossing.device)
    return Positions(crossing, once, table[crossing].float(), torch.cat(rows))


def reconstruction(
    crossing: Positions | None, variance: float, table: Tensor, seen: Tensor
) -> dict[str, float | None] | None:
    """Error of the reconstructed embeddings over all positions that cross; None without such positions.

    Beside `ReconstructionError.summary`, with the `variance` of these very positions: `token_recovery`, the
    share of positions whose reconstructed vector is nearer (Euclidean) to its own token than to any other;
    the same of the tokens that are `seen` [V] in training, and of the others (None without any).
    """
    if crossing is None:
        return None
    errors = ReconstructionError()
    errors.add(crossing.original, crossing.reconstructed, crossing.counts)
    recovered = nearest(crossing.reconstructed, crossing.ids, table).euclidean == crossing.ids
    known = seen[crossing.ids] if len(seen) else torch.zeros_like(crossing.ids, dtype=torch.bool)

    def recovery(among: Tensor) -> float | None:
        return crossing.share(recovered & among) / crossing.share(among) if among.any() else None

    return {
        **errors.summary(variance),
        "token_recovery": crossing.share(recovered),
        "token_recovery_seen": recovery(known),
        "token_recovery_unseen": recovery(~known),
        "unseen": crossing.share(~known),
    }


class Nearest(NamedTuple):
    """The vocabulary's nearest tokens [N]; the original one where none is nearer."""

    euclidean: Tensor
    cosine: Tensor


@torch.no_grad()
def nearest(reconstructed: Tensor, ids: Tensor, table: Tensor) -> Nearest:
    """The rows of `table` [V, D] nearest to `reconstructed` [N, D], whose original tokens are `ids` [N].

    The vocabulary is gone through in pieces: N × V scores would not fit into memory.
    """
    reconstructed = reconstructed.float()
    lengths = reconstructed.norm(dim=1)  # [N]
    best = reconstructed.new_full((2, len(ids)), -math.inf)
    own, found = best.clone(), torch.zeros_like(best, dtype=torch.long)
    step = max(1, SCORES_AT_ONCE // max(1, len(ids)))
    for start in range(0, len(table), step):
        rows = table[start : start + step].float()
        squares, products = rows.square().sum(1), reconstructed @ rows.T  # [step], [N, step]
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


def read_as(
    bottleneck: Bottleneck, prompts: Sequence[Prompt], crossing: Positions, found: Tensor
) -> Iterator[list[int]]:
    """Each prompt's token ids as they may be read: what crosses as the nearest token, the rest as itself.

    Args:
        bottleneck: what they went through.
        prompts: the first ones of those that `crossing` is of, or all.
        crossing: what crosses in them.
        found: [N] the token nearest to each of `crossing.reconstructed`.
    """
    # Where each token crosses the bottleneck alone, `found` is by token, otherwise by position.
    ids = crossing.ids.tolist() if bottleneck.tokenwise else []
    by_token = dict(zip(ids, found.tolist(), strict=False))
    by_position = iter(found.tolist())
    for prompt in prompts:
        pairs = zip(prompt.ids, prompt.cross, strict=True)
        if by_token:
            yield [by_token[token] if crosses else token for token, crosses in pairs]
        else:
            yield [next(by_position) if crosses else token for token, crosses in pairs]


def read_back(bottleneck: Bottleneck, prompts: Sequence[Prompt], table: Tensor) -> Iterator[list[int]] | None:
    """`read_as` of whole `prompts`; None if the compressor changes the length."""
    crossing = positions(bottleneck, prompts, count_tokens(prompts, table), table)
    if crossing is None:
        return None
    found = nearest(crossing.reconstructed, crossing.ids, table).euclidean
    return read_as(bottleneck, prompts, crossing, found)

"""Token statistics: counts, the weights training gives to tokens, least squares, reconstruction errors."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, compress

import numpy as np
import torch
from torch import Tensor

from stage1.data.prompts import Prompt
from stage1.errors import UsageError
from stage1.llm.table import require_rows
from stage1.plugins.tensors import CHUNK, Derived, TokenStats, weighted_cross_moment, weighted_mean


def count_tokens(prompts: Sequence[Prompt], table: Tensor) -> TokenStats:
    """The histogram of the tokens that cross the bottleneck in `prompts`.

    `table` is the embedding table [V, D]; the rows in use come back in float32, which holds every
    half-precision value exactly.

    Raises:
        UsageError: no token crosses, so there is nothing to measure; or a token has no row in the table.
    """
    crossing = chain.from_iterable(compress(prompt.ids, prompt.cross) for prompt in prompts)
    counts = np.bincount(np.fromiter(crossing, dtype=np.int64), minlength=len(table))
    used = np.flatnonzero(counts)
    if not len(used):
        raise UsageError("No token of these prompts crosses the bottleneck.", "Check `scope` and the data.")
    require_rows(max(max(prompt.ids) for prompt in prompts), len(table))  # raw positions are looked up, too
    ids = torch.from_numpy(used).to(table.device)
    embeds = table[ids].float()
    return TokenStats(ids, torch.from_numpy(counts[used]).double().to(table.device), embeds)


def training_shares(stats: TokenStats, uniform: float) -> Tensor:
    """[U] float64: each token's share of the training weight, summing to 1.

    `uniform` = 0 weighs tokens as the prompts do; 1 weighs every token in use alike. Answers are mostly
    rare names, which by count alone would hardly be trained.
    """
    return (1 - uniform) * stats.shares + uniform / len(stats.ids)


def occurrence_weights(stats: TokenStats, uniform: float, table: Tensor) -> Tensor:
    """[V]: what an occurrence counts, so that a token's total is its share of the training weight.

    0 for tokens that do not occur; `table` is the embedding table [V, D].
    """
    weight = torch.zeros(len(table), device=table.device)
    weight[stats.ids] = (training_shares(stats, uniform) / stats.shares).float()
    return weight


def training_rows(stats: TokenStats, uniform: float, table: Tensor, vocabulary: str) -> TokenStats:
    """The tokens that a token-wise bottleneck is trained on, weighted by their share of the training.

    All rows of `table` [V, D], or those `seen` in the prompts of `stats`. Counts are smoothed by the share
    `uniform`: both ends know the whole table, and a name that no training prompt holds may be asked for.
    """
    if vocabulary == "all":
        counts = torch.zeros(len(table), dtype=torch.float64, device=table.device)
        counts[stats.ids] = stats.weights
        ids = torch.arange(len(table), device=table.device)
        stats = replace(stats, ids=ids, weights=counts, embeds=table.float())
    return replace(stats, weights=training_shares(stats, uniform))


def least_squares(
    codes: Tensor | Derived, targets: Tensor | Derived, shares: Tensor, ridge: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Affine least squares: A [d, D] and b [D] minimising Σᵢ sᵢ ‖cᵢ A + b − tᵢ‖², in float64.

    `codes` [U, d], `targets` [U, D], `shares` [U] summing to 1; what would not fit into the memory at once is
    `Derived`. `ridge` adds that share of the codes' mean
    variance to every direction's; without it, directions in which the codes do not vary get no weight
    (pseudo-inverse), so duplicate or empty code dimensions do no harm.
    """
    inner = weighted_cross_moment(codes, codes, shares)
    outer = weighted_cross_moment(codes, targets, shares)
    if ridge:
        inner.diagonal().add_(ridge * inner.diagonal().mean())
        weight = torch.linalg.solve(inner, outer)
    else:
        weight = torch.linalg.pinv(inner, hermitian=True) @ outer
    bias = weighted_mean(shares, targets) - weighted_mean(shares, codes) @ weight
    return weight, bias


CANDIDATES = 8
"""Rows whose distance is computed exactly after the fast search by matrix product."""

NEAREST_AT_ONCE = 2048
"""Vectors searched for at a time: the score matrix is [NEAREST_AT_ONCE, K]."""


def nearest_rows(vectors: Tensor, rows: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """The `count` (at most `CANDIDATES`) of `rows` [K, d] nearest to each of `vectors` [N, d], nearest first.

    Returns their indices and squared distances, both [N, count]; of equally near ones, `CANDIDATES` at most,
    the lowest index. The same for a vector whatever stands beside it.
    """
    parts = [_nearest(chunk, rows, count) for chunk in torch.split(vectors, NEAREST_AT_ONCE)]
    indices, distances = zip(*parts, strict=True)
    return torch.cat(indices), torch.cat(distances)


def _nearest(vectors: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    # ‖v − r‖² = ‖v‖² − 2 v·r + ‖r‖², where ‖v‖² does not matter. Rounding can swap near neighbours.
    scores = rows.square().sum(1) - 2 * vectors @ rows.T  # [N, K]
    candidates = scores.topk(min(CANDIDATES, len(rows)), largest=False).indices.sort().values
    distances = (rows[candidates] - vectors[:, None]).square().sum(2)  # [N, CANDIDATES]
    order = distances.argsort(dim=1, stable=True)[:, :count]
    return candidates.gather(1, order), distances.gather(1, order)


class ReconstructionError:
    """How far reconstructed vectors are from the originals, accumulated chunk by chunk in float64."""

    def __init__(self) -> None:
        self._weight = self._squared = self._energy = self._cosine = self._norms = 0.0

    def add(self, original: Tensor, reconstructed: Tensor, weights: Tensor) -> None:
        """Count `original` and `reconstructed` [N, D] with `weights` [N]."""
        chunks = (torch.split(part, CHUNK) for part in (original, reconstructed, weights.double()))
        for true, ours, weight in zip(*chunks, strict=True):
            true, ours = true.double(), ours.double()
            norm, our_norm = true.norm(dim=1), ours.norm(dim=1)
            self._weight += float(weight.sum())
            self._squared += float(weight @ (ours - true).square().mean(1))
            self._energy += float(weight @ true.square().mean(1))
            self._cosine += float(weight @ ((true * ours).sum(1) / (norm * our_norm).clamp(min=1e-30)))
            self._norms += float(weight @ (our_norm / norm.clamp(min=1e-30)))

    def summary(self, variance: float) -> dict[str, float]:
        """`recon` (mean squared error over `variance`), `mse`, `cosine`, `relative_error`, `norm_ratio`.

        `relative_error` is √(Σ‖ê − e‖² / Σ‖e‖²); `norm_ratio` the mean of ‖ê‖ / ‖e‖.
        """
        mse = self._squared / self._weight
        return {
            "recon": mse / variance,
            "mse": mse,
            "cosine": self._cosine / self._weight,
            "relative_error": (self._squared / self._energy) ** 0.5,
            "norm_ratio": self._norms / self._weight,
        }

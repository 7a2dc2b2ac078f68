"""The compressor: how much variance its code keeps, of which tokens, and whether the rest matters."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import least_squares
from stage1.diagnosis.case import Case
from stage1.llm.chunked import token_cross_entropy
from stage1.llm.states import FrozenLLM
from stage1.plugins.tensors import CHUNK, Embedded, TokenStats

SHOWN_DIRECTIONS = 12
PROMPTS = 64
PROMPTS_AT_ONCE = 8
"""Prompts whose activations are kept for the backward pass."""


FOREIGN = 0.01
"""`mean_distance` that fitting on these tokens cannot explain: they were others, or another table's."""


class Directions(NamedTuple):
    """The principal directions of the tokens that cross, widest first; none without variance."""

    vectors: Tensor  # [D, K] orthonormal columns
    variance: Tensor  # [K] of the original embeddings
    residual: Tensor | None  # [K] mean of the squared error along each; None if the length changes
    sensitivity: Tensor  # [K] sum of the squared gradient along each
    total_sensitivity: float  # over all directions of the embedding space


def measure(case: Case) -> dict[str, Any]:
    """What the code keeps of the tokens it was fitted on, and of those asked about.

    - `explained_variance`: 1 − Σ‖ê − e‖² / Σ‖e − ē‖² of the affine decoder of the code that is best for the
      training tokens, on these (`training`) and on the tokens asked (`test`, below 0 if the mean is
      better); None if the compressor is not token-wise. `claimed` is the compressor's own word for it, the
      sum of a buffer `explained_variance`; None without one.
    - `directions`: the principal directions of the tokens asked, each with its share of their variance, the
      share of it that compressor and adapter lose (above 1: worse than the mean), and its share of the
      LLM's sensitivity, the squared gradient of the prompts' next-token cross-entropy (nats) with respect
      to the original embeddings.
    - `lost_sensitivity`: Σ residual · sensitivity / Σ variance · sensitivity over all directions; 0: what is
      lost does not matter to the LLM, to first order.
    - `estimate`: what the compressor was fitted on; `unseen`: the tokens asked that were not among it.
    - `mean_distance`: squared distance of the bottleneck's mean embedding to that of the training tokens
      over their total variance: 0 when it was fitted on them, 1e-2 or more when on something else.
    """
    bottleneck, fitted = case.bottleneck, case.fitted
    code_dim = bottleneck.compressor.code_dim
    claimed = dict(bottleneck.compressor.named_buffers()).get("explained_variance")
    return {
        "explained_variance": _explained_variance(bottleneck, fitted, case.stats),
        "claimed": None if claimed is None else float(claimed.double().sum()),
        **_matter(_directions(case)),
        "estimate": {
            "prompts": len(case.session.data.train),
            "positions": int(fitted.weights.sum()),
            "distinct_tokens": len(fitted.ids),
            "code_dim": code_dim,
            "tokens_per_dimension": len(fitted.ids) / code_dim,
        },
        "unseen": _unseen(case.stats, fitted),
        "mean_distance": mean_distance(bottleneck, fitted),
    }


def mean_distance(bottleneck: Bottleneck, fitted: TokenStats) -> float | None:
    """See `measure`; None where `fitted` does not vary."""
    spread = _total_variance(fitted)
    apart = float((bottleneck.mean_embedding.double() - fitted.mean).square().sum())
    return apart / spread if spread else None


def _total_variance(stats: TokenStats) -> float:
    return stats.variance * stats.embeds.shape[1]


@torch.no_grad()
def _explained_variance(
    bottleneck: Bottleneck, fitted: TokenStats, asked: TokenStats
) -> dict[str, float | None] | None:
    if not bottleneck.compressor.tokenwise:
        return None
    weight, bias = least_squares(bottleneck.encode_rows(fitted.embeds), fitted.embeds, fitted.shares)

    def explained(stats: TokenStats) -> float | None:
        lost = 0.0
        for rows, shares in zip(
            torch.split(stats.embeds, CHUNK), torch.split(stats.shares, CHUNK), strict=True
        ):
            decoded = bottleneck.encode_rows(rows).double() @ weight + bias
            lost += float(shares @ (decoded - rows.double()).square().sum(1))
        total = _total_variance(stats)
        return 1 - lost / total if total else None

    return {"training": explained(fitted), "test": explained(asked)}


def _directions(case: Case) -> Directions:
    variance, vectors = torch.linalg.eigh(case.stats.covariance())  # ascending
    variance, vectors = variance.flip(0), vectors.flip(1)
    kept = variance > 1e-12 * variance.sum()
    variance, vectors = variance[kept], vectors[:, kept]
    crossing, residual = case.positions, None
    if crossing is not None:
        residual = torch.zeros_like(variance)
        parts = (
            torch.split(part, CHUNK) for part in (crossing.original, crossing.reconstructed, crossing.shares)
        )
        for original, reconstructed, shares in zip(*parts, strict=True):
            residual += shares @ ((reconstructed.double() - original.double()) @ vectors).square()
    return Directions(vectors, variance, residual, *_sensitivity(case, vectors))


def _sensitivity(case: Case, vectors: Tensor) -> tuple[Tensor, float]:
    """The squared gradients along the columns of `vectors` [D, K], summed over positions; and in all."""
    llm = FrozenLLM(case.session.model.llm)
    along, total = torch.zeros_like(vectors[0]), 0.0
    for whole in case.batches(case.prompts[:PROMPTS]):
        for batch in whole.split(-(-len(whole.ids) // PROMPTS_AT_ONCE)):
            embeds = batch.embeds.requires_grad_()
            states = llm(Embedded(embeds, batch.attention)).prompt
            goal = batch.ids[:, 1:]
            counted = batch.attention[:, :-1] & batch.ordinary(case.special)[:, 1:]
            loss = token_cross_entropy(states[:, :-1][counted], goal[counted], llm.head).sum()
            (gradient,) = torch.autograd.grad(loss, embeds)
            crossing = gradient[batch.cross].double()
            along += (crossing @ vectors).square().sum(0)
            total += float(crossing.square().sum())
    return along, total


def _matter(found: Directions) -> dict[str, Any]:
    """What is lost, and whether the LLM is sensitive to it."""
    shares = {
        "variance_share": found.variance / found.variance.sum(),
        "sensitivity_share": found.sensitivity / max(found.total_sensitivity, 1e-300),
    }
    lost = None
    if found.residual is not None:
        shares["residual_share"] = found.residual / found.variance
        at_stake = float(found.variance @ found.sensitivity)
        lost = float(found.residual @ found.sensitivity) / at_stake if at_stake else None
    shown = [
        {
            "direction": rank + 1,
            "residual_share": None,
            **{name: float(values[rank]) for name, values in shares.items()},
        }
        for rank in range(min(SHOWN_DIRECTIONS, len(found.variance)))
    ]
    return {"directions": shown, "lost_sensitivity": lost}


def _unseen(asked: TokenStats, fitted: TokenStats) -> dict[str, Any]:
    new = ~torch.isin(asked.ids, fitted.ids)
    return {"tokens": int(new.sum()), "share_of_positions": float(asked.shares @ new.double())}

"""The compressor: how much variance its code keeps, of which tokens, and whether the rest matters."""

from typing import Any

import torch
from torch import Tensor

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import ReconstructionError, least_squares
from stage1.diagnosis.case import Case
from stage1.evaluation.reconstruction import Positions
from stage1.plugins.tensors import CHUNK, TokenStats
from stage1.training.sensitivity import estimated

SHOWN_DIRECTIONS = 12
PROMPTS = 64
"""Prompts that the LLM's sensitivity is measured on."""

FOREIGN = 0.01
"""`mean_distance` that fitting on these tokens cannot explain: they were others, or another table's."""


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
        **_directions(case),
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
    apart = float((bottleneck.mean_embedding.double() - fitted.mean).square().mean())
    return apart / fitted.variance if fitted.variance else None


@torch.no_grad()
def _explained_variance(
    bottleneck: Bottleneck, fitted: TokenStats, asked: TokenStats
) -> dict[str, float | None] | None:
    if not bottleneck.compressor.tokenwise:
        return None
    weight, bias = least_squares(bottleneck.encode_rows(fitted.embeds), fitted.embeds, fitted.shares)

    def explained(stats: TokenStats) -> float | None:
        errors = ReconstructionError()
        parts = zip(torch.split(stats.embeds, CHUNK), torch.split(stats.shares, CHUNK), strict=True)
        for rows, shares in parts:
            errors.add(rows, bottleneck.encode_rows(rows).double() @ weight + bias, shares)
        return 1 - errors.summary(stats.variance)["recon"] if stats.variance else None

    return {"training": explained(fitted), "test": explained(asked)}


def _directions(case: Case) -> dict[str, Any]:
    """The principal directions of the tokens that cross, widest first, and what is lost along them."""
    variance, directions = case.stats.principal_components()  # [D], [D, D] one a row
    wide = variance > 1e-12 * variance.sum()
    variance, vectors = variance[wide], directions[wide].T  # [K], [D, K]
    minded = estimated(case.session, case.prompts[:PROMPTS], drawn=False)  # [D, D]
    sensitivity = (vectors * (minded @ vectors)).sum(0)  # [K]
    shares = {
        "variance_share": variance / variance.sum(),
        "sensitivity_share": sensitivity / minded.trace().clamp(min=1e-300),
    }
    lost = None
    if case.positions is not None:
        residual = _residual(case.positions, vectors)
        shares["residual_share"] = residual / variance
        at_stake = float(variance @ sensitivity)
        lost = float(residual @ sensitivity) / at_stake if at_stake else None
    shown = [
        {
            "direction": rank + 1,
            "residual_share": None,
            **{name: float(values[rank]) for name, values in shares.items()},
        }
        for rank in range(min(SHOWN_DIRECTIONS, len(variance)))
    ]
    return {"directions": shown, "lost_sensitivity": lost}


def _residual(crossing: Positions, vectors: Tensor) -> Tensor:
    """[K] mean of the squared error along each column of `vectors` [D, K]."""
    residual = torch.zeros_like(vectors[0])
    fields = (crossing.original, crossing.reconstructed, crossing.shares)
    parts = (torch.split(field, CHUNK) for field in fields)
    for original, reconstructed, shares in zip(*parts, strict=True):
        residual += shares @ ((reconstructed.double() - original.double()) @ vectors).square()
    return residual


def _unseen(asked: TokenStats, fitted: TokenStats) -> dict[str, Any]:
    new = ~torch.isin(asked.ids, fitted.ids)
    return {"tokens": int(new.sum()), "share_of_positions": float(asked.shares @ new.double())}

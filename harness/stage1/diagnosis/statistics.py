"""Statistics match: do reconstructed vectors have the lengths, the mean and the spread of the originals?"""

from typing import Any

import torch
from torch import Tensor

from stage1.diagnosis.case import Case
from stage1.plugins.tensors import weighted_cross_moment, weighted_mean

SHOWN_EIGENVALUES, SHOWN_DIMENSIONS = 16, 5
SAME = 1e-5
"""Standard deviation of the logarithm below which lengths differ by rounding alone."""


@torch.no_grad()
def measure(case: Case) -> dict[str, Any] | None:
    """Reconstructed against original vectors over all crossing positions; None if the length changes.

    - `norm_ratio`: ‖ê‖ / ‖e‖, mean and percentiles.
    - `mean_shift`: squared distance of the two means over the originals' total variance.
    - `variance_ratio`: total variance, reconstructed over original; `per_dimension` likewise for each
      dimension, with the `worst` by the squared 2-Wasserstein distance of two normal distributions over
      the original variance, ((μ − μ̂)² + (σ − σ̂)²) / σ².
    - `spectrum`: eigenvalues of the covariance as shares of their sum, largest first, and the effective
      rank (Σλ)² / Σλ² (participation ratio); a constant has rank 0.
    - `norm_correlation`: Pearson's, between log ‖e‖ and log ‖ê‖; 0 where either does not vary.

    Ratios to a variance of 0 are None.
    """
    crossing = case.positions
    if crossing is None:
        return None
    shares = crossing.shares
    both = (crossing.original, crossing.reconstructed)
    means = [weighted_mean(shares, rows) for rows in both]
    covariances = [weighted_cross_moment(rows, rows, shares) for rows in both]
    norms = [rows.double().norm(dim=1) for rows in both]
    total, reconstructed = (float(covariance.trace()) for covariance in covariances)
    return {
        "norm_ratio": _norm_ratio(norms[0], norms[1], shares),
        "mean_shift": _over(float((means[0] - means[1]).square().sum()), total),
        "variance_ratio": _over(reconstructed, total),
        "per_dimension": _per_dimension(means, [covariance.diagonal() for covariance in covariances]),
        "spectrum": _spectrum(*covariances),
        "norm_correlation": _correlation(norms[0], norms[1], shares),
    }


def _over(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _norm_ratio(original: Tensor, reconstructed: Tensor, shares: Tensor) -> dict[str, float] | None:
    long = original > 0
    if not long.any():
        return None
    ratios, weights = reconstructed[long] / original[long], shares[long] / shares[long].sum()
    return {"mean": float(weights @ ratios), **_percentiles(ratios, weights)}


def _percentiles(values: Tensor, weights: Tensor) -> dict[str, float]:
    """The least value that, with all lesser ones, has such a share of `weights` (summing to 1)."""
    wanted = {"p5": 0.05, "median": 0.5, "p95": 0.95}
    ordered, order = values.sort()
    places = torch.searchsorted(weights[order].cumsum(0), weights.new_tensor([*wanted.values()]))
    found = ordered[places.clamp(max=len(ordered) - 1)]
    return dict(zip(wanted, found.tolist(), strict=True))


def _per_dimension(means: list[Tensor], variances: list[Tensor]) -> dict[str, Any] | None:
    (original, reconstructed), (spread, new_spread) = means, variances
    varies = spread.nonzero()[:, 0]
    if not len(varies):
        return None
    ratios = new_spread[varies] / spread[varies]
    even = torch.full_like(ratios, 1 / len(ratios))
    shift = (original - reconstructed)[varies].square() + (spread.sqrt() - new_spread.sqrt())[varies].square()
    ranked = (shift / spread[varies]).argsort(descending=True, stable=True)[:SHOWN_DIMENSIONS]
    return {
        "variance_ratio": _percentiles(ratios, even),
        "worst": [
            {
                "dimension": dimension,
                "mean_original": float(original[dimension]),
                "mean_reconstructed": float(reconstructed[dimension]),
                "variance_ratio": float(ratio),
            }
            for dimension, ratio in zip(varies[ranked].tolist(), ratios[ranked], strict=True)
        ],
    }


def _spectrum(original: Tensor, reconstructed: Tensor) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, covariance in (("original", original), ("reconstructed", reconstructed)):
        values = torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0)
        total = float(values.sum())
        shares = values / total if total > 0 else values
        found[name] = shares[:SHOWN_EIGENVALUES].tolist()
        found[f"effective_rank_{name}"] = 1 / float(shares.square().sum()) if total > 0 else 0.0
    return found


def _correlation(original: Tensor, reconstructed: Tensor, shares: Tensor) -> float:
    left, right = original.clamp(min=1e-30).log(), reconstructed.clamp(min=1e-30).log()
    left, right = left - shares @ left, right - shares @ right
    spreads = [float((shares @ part.square()).sqrt()) for part in (left, right)]
    if min(spreads) < SAME:
        return 0.0
    return float(shares @ (left * right)) / (spreads[0] * spreads[1])

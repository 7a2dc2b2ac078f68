"""Uncertainty: bootstrap intervals clustered by passage, paired across rows."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

COVERED = 95
"""Per cent of the resamples inside an interval."""


class ClusterBootstrap:
    """Resamples passages with all their questions: questions about one passage are not independent.

    Every interval is over the same resamples, so that the interval of a difference of two rows is paired.

    Attributes:
        weights: [R, C] how often each resample drew each cluster.

    Source: Field and Welsh, "Bootstrapping clustered data" (2007).
    """

    def __init__(self, clusters: Sequence[Hashable], resamples: int, seed: int) -> None:
        numbers: dict[Hashable, int] = {}
        self._cluster = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])  # [n]
        count = len(numbers)  # C
        draws: Any = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        self.weights: Floats = draws.astype(np.float64)
        self._sizes = self.weights @ np.bincount(self._cluster)  # [R] questions in each resample

    def interval(self, values: Floats) -> list[float]:
        """The 95 % interval of the mean of `values` [n], one for each question: [low, high]."""
        return _covered(self._sums(values) / self._sizes)

    def ratio_interval(self, values: Floats, reference: Floats) -> list[float] | None:
        """The 95 % interval of mean(`values`) ÷ mean(`reference`), both [n] and not negative.

        None where the reference is zero in so many resamples that the ratio has no upper bound.
        """
        below = self._sums(reference)
        if np.mean(below <= 0) > (100 - COVERED) / 200:
            return None
        drawn = below > 0
        return _covered(self._sums(values)[drawn] / below[drawn])

    def _sums(self, values: Floats) -> Floats:
        """[R] the sum of `values` [n] in each resample."""
        sums = np.bincount(self._cluster, weights=values, minlength=self.weights.shape[1])
        total: Floats = self.weights @ sums
        return total


def _covered(statistics: Floats) -> list[float]:
    tail = (100 - COVERED) / 2
    low, high = np.percentile(statistics, [tail, 100 - tail])
    return [float(low), float(high)]

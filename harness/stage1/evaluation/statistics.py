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
        sums = np.bincount(self._cluster, weights=values, minlength=self.weights.shape[1])
        means = self.weights @ sums / self._sizes
        tail = (100 - COVERED) / 2
        low, high = np.percentile(means, [tail, 100 - tail])
        return [float(low), float(high)]

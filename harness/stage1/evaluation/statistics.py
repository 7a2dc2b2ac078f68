"""Uncertainty: bootstrap intervals clustered by passage, paired differences and their tests."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

COVERED = 95
"""Per cent of the resamples inside an interval."""

LEVEL = 1 - COVERED / 100
"""Share of the comparisons of equals in which a difference may be claimed."""

SMALLEST = 1e-100
"""p-values are not told apart below it."""

POWER = 0.8
"""Probability with which a difference of `Difference.detectable` would have been found."""


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

    @property
    def clusters(self) -> int:
        """How many there are."""
        return int(self.weights.shape[1])

    def variance(self, values: Floats) -> float:
        """Of the mean of `values` [n], in closed form: the jackknife that leaves one cluster out at a time.

        With clusters of equal size it is the variance of their means over their number.

        Source: MacKinnon, Nielsen and Webb, "Cluster-robust inference: a guide to empirical practice" (2023),
        who call it CV3 and find it the one that is not too small where clusters are few and unequal.

        Raises:
            ValueError: there is one cluster only.
        """
        if self.clusters < 2:
            raise ValueError("One cluster says nothing of how clusters differ.")
        sizes = np.bincount(self._cluster)
        sums = np.bincount(self._cluster, weights=values - values.mean())
        without = -sums / (len(values) - sizes)  # [C] how far the mean moves without each
        return float((self.clusters - 1) / self.clusters * (without**2).sum())

    def _sums(self, values: Floats) -> Floats:
        """[R] the sum of `values` [n] in each resample."""
        sums = np.bincount(self._cluster, weights=values, minlength=self.weights.shape[1])
        total: Floats = self.weights @ sums
        return total


class Difference(NamedTuple):
    """A paired difference of two means over the same questions, and what can be said of it.

    The interval and `p` are those of one t-test on cluster-robust standard errors, so that one excludes zero
    exactly where the other is below 5 %. The percentile bootstrap beside it is what tables of single runs
    show; with few passages it is too narrow: it has no degrees of freedom.
    """

    mean: float
    ci95: list[float]
    p: float  # two-sided; 1 where no question differs
    detectable: float | None  # smallest true difference found with `POWER`; None where no question differs
    standard_error: float
    bootstrap_ci95: list[float]  # over passages alone, as in results.json and sweep.json


class Comparison:
    """Statistics over one set of questions: every interval resamples the same passages.

    Args:
        clusters: each question's passage [n].
        resamples: bootstrap resamples.
        seed: of the resampling.
    """

    def __init__(self, clusters: Sequence[Hashable], resamples: int, seed: int) -> None:
        self.bootstrap = ClusterBootstrap(clusters, resamples, seed)

    def average(self, runs: Sequence[Floats]) -> dict[str, Any]:
        """Mean F1 of runs that differ in their seed, each with the F1 of its questions [n].

        `f1_spread` is the standard deviation of the runs' means (n − 1 in the denominator; None for a single
        run); the interval is that of the per-question means: it is over passages, not over seeds.
        """
        f1 = np.stack(runs)  # [S, n]
        deviation = float(f1.mean(1).std(ddof=1)) if len(f1) > 1 else None
        interval = self.bootstrap.interval(f1.mean(0))
        return {"f1": float(f1.mean()), "f1_spread": deviation, "f1_ci95": interval}

    def compared(self, ours: Mapping[int, Floats], theirs: Mapping[int, Floats]) -> dict[str, Any] | None:
        """The paired difference of mean F1 as sweeps show it; F1 [n] by seed.

        None where they have no seed in common. The interval is over passages, not over seeds.
        """
        by_seed = {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}
        if not by_seed:
            return None
        values = np.mean(list(by_seed.values()), axis=0)
        return {
            "seeds": list(by_seed),
            "f1_difference": float(values.mean()),
            "f1_difference_ci95": self.bootstrap.interval(values),
        }

    def difference(self, values: Floats, level: float = LEVEL) -> Difference:
        """What paired differences `values` [S, n] of n questions and S seeds say of the means' difference.

        A t-test whose variance is the sum of two parts. Over C passages: `ClusterBootstrap.variance` of the
        differences averaged over the seeds, with C − 1 degrees of freedom. Over S > 1 seeds: the variance of
        the seeds' means over S, with S − 1. What both parts contain is counted twice, which errs on the safe
        side and, unlike the subtraction of Cameron, Gelbach and Miller (2011), never leaves less than zero.
        Quantiles are those of the parts, weighted by their variances: Cochran and Cox, "Experimental
        designs" (1957), § 4.14. (Satterthwaite's degrees of freedom claimed a difference between equals of
        two seeds 11 % of the time.) For one seed and passages of equally many questions it is
        `scipy.stats.ttest_1samp` of the passages' means.

        Why not the percentile bootstrap: between equals it claims a difference 10 % of the time with 10
        passages and 7 % with 24, and knows nothing of seeds. `tools/false_alarms.py` measures both.

        Args:
            values: one row for each seed.
            level: at which a difference of `Difference.detectable` counts as found.

        Raises:
            ValueError: all questions are about one passage: nothing is known of how passages differ.
        """
        seeds, by_question, mean = len(values), values.mean(0), float(values.mean())
        parts = [(self.bootstrap.variance(by_question), self.bootstrap.clusters - 1)]
        if seeds > 1:
            parts.append((float(values.mean(1).var(ddof=1)) / seeds, seeds - 1))
        error = math.sqrt(sum(variance for variance, _ in parts))
        bootstrapped = self.bootstrap.interval(by_question)
        if error == 0:
            return Difference(mean, [mean, mean], float(mean == 0), None, 0.0, bootstrapped)
        reach = error * _quantile(parts, LEVEL / 2)
        return Difference(
            mean=mean,
            ci95=[mean - reach, mean + reach],
            p=_two_sided(parts, abs(mean) / error),
            detectable=error * (_quantile(parts, level / 2) + _quantile(parts, 1 - POWER)),
            standard_error=error,
            bootstrap_ci95=bootstrapped,
        )


Parts = Sequence[tuple[float, int]]
"""A variance as a sum: each part with its degrees of freedom."""


def _quantile(parts: Parts, tail: float) -> float:
    """What a t-statistic over these `parts` exceeds with probability `tail`."""
    from scipy.stats import t as student  # takes half a second to load

    total = sum(variance for variance, _ in parts)
    return sum(variance * float(student.isf(tail, freedom)) for variance, freedom in parts) / total


def _two_sided(parts: Parts, t: float) -> float:
    """The p-value of a t-statistic whose quantiles are those of `_quantile`."""
    from scipy.optimize import brentq

    if t <= 0:
        return 1.0
    if _quantile(parts, SMALLEST) <= t:
        return 2 * SMALLEST
    half = brentq(
        lambda log: _quantile(parts, math.exp(log)) - t, math.log(SMALLEST), math.log(0.5), xtol=1e-13
    )
    return 2 * math.exp(half)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for how many there are: a single false alarm among all stays as rare as in one.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.array(p)[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return [float(value) for value in corrected]


def _covered(statistics: Floats) -> list[float]:
    tail = (100 - COVERED) / 2
    low, high = np.percentile(statistics, [tail, 100 - tail])
    return [float(low), float(high)]

"""Where a share of the text F1 is lost: the search among methods and rates, apart from what runs them.

Settings are *cells*: a method (compressor, adapter, …) at a rate. Two sets of questions are asked. On the
selection questions the search looks for the smallest rate at which some method keeps the share: bisection
over the rate, and at each rate successive halving of the methods, with more questions for those that are
left. On the test questions, which the search has not seen, what it found is confirmed.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from stage1.evaluation.statistics import Floats

FURTHER = (0, 1, 3, 7)
"""Which rates are confirmed until one is: steps from the smallest that seems to keep the share."""

SEARCHING = 0.75
"""Share of the budget after which the search begins no further step: the rest is for the confirmation."""


class Sample(NamedTuple):
    """Answers of one cell, question by question."""

    f1: Floats  # [n] through the bottleneck, 0 to 100
    text: Floats  # [n] of the text itself
    passages: NDArray[np.int64]  # [n] which of them each question is about

    def gain(self, keep: float) -> float:
        """Mean F1 beyond what is to be kept; negative where it falls short."""
        return float((self.f1 - keep * self.text).mean())


class Rule(NamedTuple):
    """What is claimed, and how surely.

    Attributes:
        keep: the share of the text F1.
        error: probability, at most, that the setting which the confirmation names keeps less.
        first: questions that every cell is asked; then twice as many, and so on.
        most: selection questions there are.
    """

    keep: float = 0.95
    error: float = 0.05
    first: int = 40
    most: int = 600

    @property
    def looks(self) -> list[int]:
        """After how many questions of a cell the search decides whether to ask more."""
        doubled = [self.first * 2**k for k in range(32) if self.first * 2**k < self.most]
        return [*doubled, self.most]

    def confirmable(self, text: float) -> int:
        """Passages of test questions that a confirmation takes, were all answered as the text answers.

        What the text answers wrongly shows nothing: `text` is its F1, 0 to 100.
        """
        answered = math.log(self.error / len(FURTHER)) / math.log(self.keep) if self.keep < 1 else 1
        return math.ceil(answered / max(text / 100, 1e-3))

    @property
    def look_error(self) -> float:
        """The error of one look at a cell: with Bonferroni's correction, that of all looks is `error`."""
        return self.error / len(self.looks)


def p_keeps(sample: Sample, keep: float) -> float:
    """How probable answers like these are, or better ones, of a cell that keeps less than `keep`.

    Questions are paired with their own text answers and added up by passage, as those about one passage are
    not independent. A compressor near the border answers nearly all questions like the text and fails a few
    entirely: a t-test takes samples in which the failures happen to be missing for proof, in 12 % of cases
    instead of 5 % (200 questions, each answered or not). So the t statistic is corrected for skewness (Hall,
    "On the removal of skewness by transformation", 1992), and no value is believed that is smaller than the
    probability to see no failure at all, keep to the power of the questions that the text answers, one a
    passage (the exact form of the "rule of three", Hanley and Lippman-Hand, 1983).
    """
    gains = _by_passage(sample.f1 - keep * sample.text, sample.passages)
    answered = sample.text.mean() / 100 * len(gains)
    return max(_p_positive(gains), float(keep**answered))


def p_short(sample: Sample, keep: float) -> float:
    """How probable answers like these are, or worse ones, of a cell that keeps `keep` or more."""
    return _p_positive(_by_passage(keep * sample.text - sample.f1, sample.passages))


def _by_passage(values: Floats, passages: NDArray[np.int64]) -> Floats:
    """[C] sums over each passage's questions."""
    return np.bincount(np.unique(passages, return_inverse=True)[1], weights=values).astype(np.float64)


def _p_positive(values: Floats) -> float:
    """The p-value against a mean of `values` [C] of at most zero."""
    n, mean, deviation = len(values), values.mean(), values.std()
    if n < 2 or deviation < 1e-9:
        return 0.0 if n > 1 and mean > 0 else 1.0
    u, skewness = mean / deviation, (((values - mean) / deviation) ** 3).mean()
    statistic = u + skewness * u**2 / 3 + skewness**2 * u**3 / 27 + skewness / (6 * n)
    return float(stdtr(n - 1, -math.sqrt(n - 1) * statistic))


class BudgetSpentError(Exception):
    """No time is left for a further step."""


class Budget:
    """Minutes, and what they were spent on.

    A step is not begun where the longest one so far would not fit any more; one that was begun is finished.

    Args:
        minutes: None: as many as it takes.
        clock: seconds, from any beginning.
    """

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._begun, self._longest = clock, clock(), 0.0
        self.seconds = math.inf if minutes is None else 60 * minutes
        self.share = SEARCHING

    def spend(self, step: Callable[[], Sample]) -> Sample:
        """What `step` returns.

        Raises:
            BudgetSpentError: it was not begun.
        """
        begun = self._clock()
        if begun - self._begun + self._longest > self.share * self.seconds:
            raise BudgetSpentError
        sample = step()
        self._longest = max(self._longest, self._clock() - begun)
        return sample


Cells = Sequence[Sequence[int | None]]
"""By rate, the smallest first, and method: the number of the method's setting that costs as much or less."""

Measure = Callable[[int, int, int], Sample]
"""Method, setting and number of questions → their answers, always the same for the same numbers."""


@dataclass
class Search:
    """The smallest rate at which a method seems to keep the share, by bisection over `cells`.

    It takes for granted that what keeps the share at a rate does so at every larger one. At each rate the
    methods that are left race: all are asked a few questions; those that surely fall short are out, of the
    others the better half is asked twice as many (successive halving: Jamieson and Talwalkar, 2016), until
    one is left and is surely on one side of the border, or has answered all selection questions. Where one
    keeps the share, methods that surely fall short of it, or are surely worse than that one, leave for good.
    Looks and methods are allowed for by Bonferroni's correction.

    It only chooses; that its choice keeps the share is for `confirm` to claim.

    Attributes:
        low: the largest rate at which none keeps the share, −1 before one was found.
        high: the smallest at which one does, `len(cells)` before one was found.
        winners: rate → method and setting that came out of its race.
        alive: the methods that are left.
    """

    cells: Cells
    measure: Measure
    rule: Rule
    low: int = -1
    winners: dict[int, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.high = len(self.cells)
        self.alive = set(range(len(self.cells[0]))) if self.cells else set()

    def run(self) -> None:
        """Search until two neighbouring rates stand on either side of the border.

        Raises:
            BudgetSpentError: from `measure`; what was found so far stays.
        """
        while self.high - self.low > 1:
            middle = (self.low + self.high) // 2
            if self._keeps(middle):
                self.high = middle
            else:
                self.low = middle

    def _keeps(self, rate: int) -> bool:
        racing = here = {m: cell for m in self.alive if (cell := self.cells[rate][m]) is not None}
        if not racing:
            return False
        answers: dict[int, Sample] = {}
        best: list[int] = []
        for number in self.rule.looks:
            answers |= {m: self.measure(m, cell, number) for m, cell in sorted(racing.items())}
            best = self._better_half(racing, answers)
            racing = {m: here[m] for m in best}
            sure = len(best) == 1 and p_keeps(answers[best[0]], self.rule.keep) <= self.rule.look_error
            if sure or not best:
                break
        gains = {m: sample.gain(self.rule.keep) for m, sample in answers.items()}
        leader = best[0] if best else max(gains, key=lambda m: gains[m])
        keeps = bool(best) and gains[leader] >= 0
        self.winners[rate] = leader, here[leader]
        if keeps:
            self.alive -= {m for m in answers if m != leader and self._beaten(answers[m], answers[leader])}
        return keeps

    def _better_half(self, racing: Mapping[int, int], answers: Mapping[int, Sample]) -> list[int]:
        """The methods that go on, the best first; none where all surely fall short."""
        hopeful = [m for m in racing if not self._surely_short(answers[m])]
        hopeful.sort(key=lambda m: -answers[m].gain(self.rule.keep))
        return hopeful[: math.ceil(len(hopeful) / 2)]

    def _surely_short(self, sample: Sample) -> bool:
        return p_short(sample, self.rule.keep) <= self.rule.look_error

    def _beaten(self, sample: Sample, leader: Sample) -> bool:
        """Whether a method surely falls short, or is surely worse than the leader on the same questions."""
        n = len(sample.f1)
        worse = _p_positive(_by_passage(leader.f1[:n] - sample.f1, sample.passages))
        return self._surely_short(sample) or worse <= self.rule.look_error / len(self.cells[0])

    def candidates(self) -> Iterator[tuple[int, int]]:
        """Method and setting of what is to be confirmed, one after the other until one is."""
        if self.high not in self.winners:
            return
        method, _ = self.winners[self.high]
        rates = (min(self.high + further, len(self.cells) - 1) for further in FURTHER)
        cells = dict.fromkeys(self.cells[rate][method] for rate in rates)
        yield from ((method, cell) for cell in cells if cell is not None)


def confirm(
    candidates: Iterable[tuple[int, int]], test: Callable[[int, int], Sample], rule: Rule
) -> tuple[int, int] | None:
    """The first candidate whose test answers show that it keeps the share; None where none does.

    The candidates depend on the selection questions alone, and there are at most `len(FURTHER)`, each claimed
    at `error / len(FURTHER)`: by Bonferroni's inequality some candidate is claimed wrongly with a probability
    of at most `error`, whatever the search did.

    Raises:
        BudgetSpentError: from `test`.
    """
    for method, cell in candidates:
        if p_keeps(test(method, cell), rule.keep) <= rule.error / len(FURTHER):
            return method, cell
    return None

"""The search for the frontier, on simulated answers: no LLM, known curves, known errors."""

import math
from collections.abc import Callable
from itertools import count

import numpy as np
import pytest

from stage1.sweeps.search import (
    FURTHER,
    Budget,
    BudgetSpentError,
    Rule,
    Sample,
    Search,
    confirm,
    p_keeps,
    p_short,
)

RATES = 40
MOST = 600
ABOUT = np.arange(MOST) // 3
"""Which passage each question is about."""


def share(rate: int, border: int, steep: float = 0.15) -> float:
    """A method's share of the text F1: 0.95 between the rates border − 1 and border."""
    return 1 / (1 + math.exp(-math.log(19) - steep * (rate - border + 0.5)))


class Answers:
    """Answers as an LLM gives them: like the text's, but for a share of questions that fail altogether."""

    def __init__(self, shares: Callable[[int, int], float], seed: int, answerable: float = 0.85) -> None:
        self.shares, self.seed = shares, seed
        answered = np.random.default_rng([seed, 0]).random(MOST) < answerable
        self.text = np.where(answered, 100.0, 0.0)
        self.asked: dict[tuple[int, int], int] = {}

    def __call__(self, method: int, cell: int, number: int) -> Sample:
        self.asked[method, cell] = max(number, self.asked.get((method, cell), 0))
        kept = np.random.default_rng([self.seed, 1, method, cell]).random(MOST) < self.shares(method, cell)
        f1 = np.where(kept, self.text, 0.0)
        return Sample(f1[:number], self.text[:number], ABOUT[:number])


def exact(shares: Callable[[int, int], float]) -> Callable[[int, int, int], Sample]:
    """Answers without chance: every question's F1 is the share."""

    def measure(method: int, cell: int, number: int) -> Sample:
        text = np.full(number, 100.0)
        return Sample(np.full(number, 100 * shares(method, cell)), text, np.arange(number))

    return measure


def grid(methods: int, rates: int = RATES) -> list[list[int | None]]:
    return [[rate] * methods for rate in range(rates)]


def test_looks_double_and_end_with_all_questions() -> None:
    assert Rule(first=40, most=600).looks == [40, 80, 160, 320, 600]
    assert Rule(first=40, most=24).looks == [24]
    assert Rule().look_error == pytest.approx(0.01)
    assert Rule(keep=0.95).confirmable(100) == 86
    assert Rule(keep=0.95).confirmable(28) == 306  # what the text answers wrongly shows nothing


@pytest.mark.parametrize("border", [0, 1, 7, 20, 39])
def test_without_chance_the_border_is_exact(border: int) -> None:
    search = Search(grid(1), exact(lambda _, rate: share(rate, border)), Rule())
    search.run()
    assert (search.low, search.high) == (border - 1, border)
    assert len(search.winners) <= math.ceil(math.log2(RATES + 1))


def test_a_share_that_no_rate_keeps_is_not_found() -> None:
    search = Search(grid(2), exact(lambda _, rate: 0.9), Rule())
    search.run()
    assert (search.low, search.high) == (RATES - 1, RATES)
    assert list(search.candidates()) == []


def test_the_best_of_several_methods_is_found_and_the_others_leave() -> None:
    borders = [31, 12, 25, 20]
    search = Search(grid(4), exact(lambda method, rate: share(rate, borders[method])), Rule())
    search.run()
    assert search.high == 12
    assert search.winners[12] == (1, 12)
    assert search.alive == {1}
    assert next(search.candidates()) == (1, 12)


def test_a_method_without_a_setting_that_cheap_waits_for_a_larger_rate() -> None:
    cells = [[rate, rate // 10 if rate >= 10 else None] for rate in range(RATES)]  # four settings

    def shares(method: int, setting: int) -> float:
        return share(setting, 2, steep=2) if method else share(setting, 35)

    search = Search(cells, exact(shares), Rule())
    search.run()
    assert (search.high, search.winners[search.high]) == (20, (1, 2))
    assert [cell for _, cell in search.candidates()] == [2]  # the same setting is confirmed once


def test_with_chance_the_border_is_found_within_a_step_and_hopeless_settings_cost_little() -> None:
    near, few = 0, []
    for seed in range(100):
        answers = Answers(lambda _, rate: share(rate, 26, steep=0.5), seed)
        search = Search(grid(1), answers, Rule())
        search.run()
        near += abs(search.high - 26) <= 1
        few.append(answers.asked[0, 19])  # always the first; keeps 43 % of the text F1
    assert near >= 90
    assert max(few) == 40  # of 600


def claimed(shares: Callable[[int, int], float], seed: int, cells: list[list[int | None]]) -> int | None:
    """The setting that a whole search and its confirmation name."""
    search = Search(cells, Answers(shares, seed), Rule())
    search.run()
    tests = Answers(shares, seed + 1_000_000)
    found = confirm(search.candidates(), lambda method, cell: tests(method, cell, 600), Rule())
    return found and found[1]


def test_the_claim_is_wrong_in_at_most_one_of_twenty_searches() -> None:
    """The worst case: every setting keeps a hair less than the share, so that any claim is wrong."""
    wrong = sum(claimed(lambda _, rate: 0.9499, seed, grid(1, rates=6)) is not None for seed in range(1000))
    assert wrong <= 55
    assert wrong >= 5  # or the test would be no use where something is to be found


def test_what_keeps_more_is_claimed() -> None:
    found = [claimed(lambda _, rate: share(rate, 20, steep=0.5), seed, grid(1)) for seed in range(50)]
    assert sum(setting is not None for setting in found) >= 45
    assert all(20 <= setting <= 30 for setting in found if setting is not None)


@pytest.mark.parametrize(("questions", "answerable"), [(60, 1.0), (100, 1.0), (200, 0.85), (600, 0.4)])
def test_each_test_errs_as_rarely_as_it_says(questions: int, answerable: float) -> None:
    level = 0.05 / len(FURTHER)
    samples = [Answers(lambda *_: 0.95, seed, answerable)(0, 0, questions) for seed in range(1000)]
    assert sum(p_keeps(sample, 0.95) <= level for sample in samples) <= 22  # 12.5 expected at most
    assert sum(p_short(sample, 0.95) <= level for sample in samples) <= 35


def test_no_failure_in_few_questions_proves_nothing() -> None:
    none_failed = Sample(np.full(40, 100.0), np.full(40, 100.0), np.arange(40))
    assert p_keeps(none_failed, 0.95) == pytest.approx(0.95**40)
    all_failed = none_failed._replace(f1=np.zeros(40))
    assert p_short(all_failed, 0.95) == 0
    assert p_keeps(all_failed, 0.95) == 1


def test_a_budget_ends_the_search_and_what_was_found_stays() -> None:
    seconds = 0.0

    def work(method: int, cell: int, number: int) -> Sample:
        nonlocal seconds
        seconds += 30
        return exact(lambda _, rate: share(rate, 12))(method, cell, number)

    budget = Budget(3, clock=lambda: seconds)
    search = Search(grid(1), lambda *cell: budget.spend(lambda: work(*cell)), Rule())
    with pytest.raises(BudgetSpentError):
        search.run()
    assert seconds <= 0.75 * 180
    assert -1 <= search.low < 12 <= search.high
    budget.share = 1.0
    for _ in count():
        try:
            budget.spend(lambda: work(0, 12, 600))
        except BudgetSpentError:
            break
    assert 150 <= seconds <= 180

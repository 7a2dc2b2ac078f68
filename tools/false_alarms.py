"""How often two systems that are equal are told apart: the t-test of `stage1 compare` beside the bootstrap.

    python tools/false_alarms.py            # the table in docs/compare.md

Between equals a test at 5 % should claim a difference at most once in twenty times.
"""

import argparse

import numpy as np

from stage1.evaluation.statistics import LEVEL, Comparison, Floats

LUCK = {"no": 0.0, "some": 0.15, "much": 0.5}
"""How much a seed decides: the standard deviation of a system's log odds between its seeds."""


def equals(
    rng: np.random.Generator, passages: int, seeds: int, *, luck: float = 0.15, shift: float = 0.0
) -> tuple[list[int], Floats]:
    """Two systems that are equal but for `shift`: each question's passage [n], and differences of F1 [S, n].

    Passages have two to six questions, and differ in how hard they are and in which system they favour.
    """
    passage = np.repeat(np.arange(passages), rng.integers(2, 7, passages))  # [n]
    hard, favour = rng.normal(0.8, 1.2, passages), rng.normal(0, 0.7, (2, passages))
    lucky = rng.normal(0, luck, (seeds, 2)) if seeds > 1 else np.zeros((1, 2))
    logits = hard[passage] + favour[None, :, passage] + lucky[:, :, None]  # [S, 2, n]
    right = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
    f1 = 100 * right * np.where(rng.random(logits.shape) < 0.2, 0.5, 1.0)
    return passage.tolist(), f1[:, 1] - f1[:, 0] + shift


def alarms(passages: int, seeds: int, luck: float, comparisons: int) -> tuple[float, float]:
    """Share of comparisons of equals in which a difference is claimed: by the t-test, by the bootstrap."""
    rng = np.random.default_rng(0)
    tested = bootstrapped = 0
    for _ in range(comparisons):
        where, values = equals(rng, passages, seeds, luck=luck)
        found = Comparison(where, 400, 0).difference(values)
        low, high = found.bootstrap_ci95
        tested += found.p < LEVEL
        bootstrapped += not low <= 0 <= high
    return tested / comparisons, bootstrapped / comparisons


def main() -> None:
    """Print a line for each number of passages and seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comparisons", type=int, default=1_000, help="for each line")
    comparisons = parser.parse_args().comparisons
    print("| passages | seeds | a seed decides | t-test | bootstrap over passages |\n|---|---|---|---|---|")
    for passages in (6, 12, 40, 200):
        for seeds, luck in ((1, "no"), (2, "some"), (3, "some"), (5, "some"), (2, "much"), (3, "much")):
            tested, bootstrapped = alarms(passages, seeds, LUCK[luck], comparisons)
            print(f"| {passages} | {seeds} | {luck} | {tested:.1%} | {bootstrapped:.1%} |", flush=True)


if __name__ == "__main__":
    main()

"""Runs against each other: answers of several seeds averaged, runs compared question by question."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from stage1.config import DataConfig, RunConfig
from stage1.data.datasets import load_qa, spread
from stage1.data.records import Question
from stage1.errors import UsageError
from stage1.evaluation.answers import scores
from stage1.evaluation.statistics import ClusterBootstrap, Floats
from stage1.runs.run import Run


def asked(config: RunConfig) -> list[Question]:
    """The test questions that a run of `config` is asked."""
    return _asked(
        config.data.model_copy(update={"train": 1, "selection": 1}).model_dump_json(), config.eval.limit
    )


@cache
def _asked(data: str, limit: int | None) -> list[Question]:
    return spread(load_qa(DataConfig.model_validate_json(data)).test, limit)


def same_questions(configs: Sequence[RunConfig]) -> bool:
    """Whether runs of all of `configs` are asked the same questions, so that they pair."""
    first = [question.id for question in asked(configs[0])]
    return all([question.id for question in asked(config)] == first for config in configs[1:])


def question_f1(run: Run, row: str, questions: Sequence[Question]) -> Floats:
    """F1 (0 to 100) of each question's answer in `row`, from the run's predictions: [n].

    Raises:
        UsageError: the predictions are missing, damaged or about other questions.
    """
    answers = run.read_predictions(row)
    if list(answers) != [question.id for question in questions]:
        raise UsageError(
            f"The row {row} of {run.path} answers other questions than this comparison is about.",
            "Compare runs with the same data and eval.limit.",
        )
    f1: Floats = scores(questions, list(answers.values()))["f1"]
    return f1


class Comparison:
    """Statistics over one set of questions: every interval resamples the same passages.

    Args:
        questions: what all of the runs were asked.
        resamples: bootstrap resamples.
        seed: of the resampling.
    """

    def __init__(self, questions: Sequence[Question], resamples: int, seed: int) -> None:
        self.bootstrap = ClusterBootstrap([q.context for q in questions], resamples, seed)

    def average(self, runs: Sequence[Floats]) -> dict[str, Any]:
        """Mean F1 of runs that differ in their seed, each with the F1 of its questions [n].

        `f1_spread` is the standard deviation of the runs' means (n − 1 in the denominator; None for a single
        run); the interval is that of the per-question means: it is over passages, not over seeds.
        """
        f1 = np.stack(runs)  # [S, n]
        deviation = float(f1.mean(1).std(ddof=1)) if len(f1) > 1 else None
        interval = self.bootstrap.interval(f1.mean(0))
        return {"f1": float(f1.mean()), "f1_spread": deviation, "f1_ci95": interval}

    def difference(self, ours: Mapping[int, Floats], theirs: Mapping[int, Floats]) -> dict[str, Any] | None:
        """Paired difference of mean F1, ours − theirs; F1 [n] by seed. Only seeds that both have count.

        None where they have none in common.
        """
        common = sorted(ours.keys() & theirs.keys())
        if not common:
            return None
        values = np.mean([ours[seed] - theirs[seed] for seed in common], axis=0)
        interval = self.bootstrap.interval(values)
        return {"seeds": common, "f1_difference": float(values.mean()), "f1_difference_ci95": interval}

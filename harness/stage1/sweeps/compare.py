"""Which questions the runs of a sweep are asked, and how each was answered."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from stage1.config import DataConfig, RunConfig
from stage1.data.datasets import load_qa, spread
from stage1.data.records import Question
from stage1.errors import UsageError
from stage1.evaluation.statistics import Floats
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
    """F1 (0 to 100) of each question's answer in `row`, as the run keeps it: [n].

    Raises:
        UsageError: the answers are missing, damaged or to other questions.
    """
    answers = run.read_answers(row)
    if [answer.id for answer in answers] != [question.id for question in questions]:
        raise UsageError(
            f"The row {row} of {run.path} answers other questions than this comparison is about.",
            "Compare runs with the same data and eval.limit.",
        )
    return np.array([answer.f1 for answer in answers])

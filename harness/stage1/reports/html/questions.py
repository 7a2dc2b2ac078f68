"""The questions of a run, with every row's answer, as the browser of a report shows them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stage1.data.datasets import spread
from stage1.errors import UsageError
from stage1.evaluation.statistics import ClusterBootstrap, Floats
from stage1.progress import Progress
from stage1.reports.html.reading import Reading, read_prompts
from stage1.runs.answers import Answer
from stage1.runs.run import Run
from stage1.session import Session

STATIC = 20
"""Questions that stand in the page itself, for readers without scripts."""


class Asked(NamedTuple):
    """The same questions, answered several times."""

    rows: Mapping[str, Sequence[Answer]]  # empty before an evaluation
    reading: Reading | None = None  # the prompts as they may be read; None: they are not shown
    note: str = ""  # why not, or what else is missing

    @property
    def questions(self) -> Sequence[Answer]:
        """The questions, as the first row's answers hold them."""
        return next(iter(self.rows.values()))

    def f1(self, row: str) -> Floats:
        """F1 of each answer, 0 to 100: [n]."""
        return np.array([answer.f1 for answer in self.rows[row]])

    def right(self, row: str) -> Any:
        """Whether each answer is right: [n], bool."""
        return np.array([answer.right for answer in self.rows[row]], dtype=bool)

    def bootstrap(self, resamples: int, seed: int) -> ClusterBootstrap:
        """What makes intervals of means over the questions."""
        return ClusterBootstrap([answer.passage for answer in self.questions], resamples, seed)

    def data(self, judged: str, against: str) -> dict[str, Any]:
        """What the browser's script is given; it begins with the answers of `judged` beside `against`."""
        names, rows = list(self.rows), list(self.rows.values())
        numbers: dict[str, int] = {}
        whose = [numbers.setdefault(answer.passage, len(numbers)) for answer in self.questions]
        return {
            "rows": names,
            "judged": names.index(judged),
            "against": names.index(against),
            "ids": [answer.id for answer in self.questions],
            "questions": [answer.question for answer in self.questions],
            "gold": [list(dict.fromkeys(answer.gold)) for answer in self.questions],
            "passage": whose,
            "answers": [[answer.prediction for answer in row] for row in rows],
            "f1": [[round(answer.f1, 1) for answer in row] for row in rows],
            "right": ["".join(str(int(answer.right)) for answer in row) for row in rows],
            "cut": ["".join(str(int(answer.cut)) for answer in row) for row in rows],
            "reading": self.reading and self.reading.data(whose),
        }

    def first(self, judged: str, against: str) -> list[tuple[str, ...]]:
        """The first questions, as a table: question, gold, both answers, F1 and its change."""
        pairs = zip(self.rows[judged][:STATIC], self.rows[against], strict=False)
        return [
            (
                ours.question,
                " | ".join(dict.fromkeys(ours.gold)),
                theirs.prediction,
                ours.prediction,
                f"{ours.f1:.1f}",
                f"{ours.f1 - theirs.f1:.1f}",
            )
            for ours, theirs in pairs
        ]


def collect(run: Run, rows: Sequence[str], progress: Progress) -> Asked:
    """The questions of an evaluated run, and its prompts where model and data are on this machine.

    Raises:
        UsageError: its answers are missing or damaged.
    """
    answers = {row: run.read_answers(row) for row in rows}
    try:
        with progress.task("Reading prompts"):
            reading = _reading(run, [answer.id for answer in answers[rows[0]]], progress)
    except UsageError as error:  # it may name places on this machine, which a report does not
        progress.note(f"The report will show no prompts. {error}")
        return Asked(answers, note="The prompts are not shown: the run's model or data were not at hand.")
    return Asked(answers, reading, reading.note)


def _reading(run: Run, ids: Sequence[str], progress: Progress) -> Reading:
    config, trained_on = run.config, run.read_trained_on()
    session = Session.open(config, progress, weights="table", trained_on=trained_on, example_data=config.data)
    questions = spread(session.data.test, config.eval.limit)
    if session.data.sha256 != trained_on.test or [question.id for question in questions] != list(ids):
        raise UsageError(
            f"{config.data.name} no longer holds the questions of the run.", "Evaluate it again."
        )
    return read_prompts(session.load_bottleneck(run), session, questions)

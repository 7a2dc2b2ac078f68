"""The questions of a run, with every row's answer and the prompts over their reconstruction.

Of a prompt, each token stands over the token that its reconstructed vector is nearest to.
"""

import gzip
from collections.abc import Iterable, Mapping, Sequence
from os.path import commonprefix
from typing import Any, NamedTuple

import numpy as np

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.data.datasets import spread
from stage1.data.prompts import Prompt
from stage1.data.records import Question
from stage1.errors import UsageError
from stage1.evaluation.reconstruction import read_back
from stage1.evaluation.statistics import ClusterBootstrap, Floats
from stage1.llm.tokenizer import token_text
from stage1.progress import Progress
from stage1.runs.answers import Answer
from stage1.runs.run import Run
from stage1.session import Session

STATIC = 20
"""Questions that stand in the page itself, for readers without scripts."""

PROMPTS = 100
"""Prompts that are reconstructed where a vector depends on its neighbours, too: each position on its own."""


class Reading(NamedTuple):
    """Prompts as they may be read.

    A prompt is a list of numbers of `pairs`: what a token is, and what it is read as (None: as itself).
    """

    pairs: list[tuple[str, str | None]]
    prompts: list[list[int]]  # empty for those that were not reconstructed
    cut: list[int]  # tokens that truncation removed of each prompt
    gzip_bits: float  # per token of the prompts
    note: str = ""

    def data(self, passage: Sequence[int]) -> dict[str, Any]:
        """The same for a file.

        A prompt is as much as it shares with the beginning of the first one about its passage, and the rest.
        """
        first: dict[int, list[int]] = {}
        rests = []
        for prompt, which in zip(self.prompts, passage, strict=True):
            same = len(commonprefix([first.setdefault(which, prompt), prompt]))  # noqa: RUF071 - no paths
            rests.append([same, *prompt[same:]])
        return {"pairs": self.pairs, "first": list(first.values()), "rest": rests, "cut": self.cut}


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


def read_prompts(bottleneck: Bottleneck, session: Session, questions: Sequence[Question]) -> Reading:
    """The prompts of `questions` through the bottleneck; of the LLM its table is enough."""
    prompts = session.prompts(questions)
    one_by_one = not (bottleneck.tokenwise or bottleneck.compressor.changes_length)
    shown = prompts[:PROMPTS] if one_by_one else prompts
    read: Iterable[Sequence[int]] | None = read_back(bottleneck, shown, session.table)
    note = ""
    if read is None:
        note = "This compressor changes the number of vectors: no token stands over its reconstruction."
        read = [prompt.ids for prompt in shown]
    elif len(shown) < len(prompts):
        note = f"The first {len(shown)} prompts are shown over their reconstruction."
    numbers: dict[tuple[int, int], int] = {}
    lines = [
        [numbers.setdefault(pair, len(numbers)) for pair in zip(prompt.ids, other, strict=True)]
        for prompt, other in zip(shown, read, strict=True)
    ]
    texts = {token: token_text(session.tokenizer, token) for pair in numbers for token in pair}
    return Reading(
        pairs=[(texts[own], texts[other] if other != own else None) for own, other in numbers],
        prompts=lines + [[] for _ in prompts[len(shown) :]],
        cut=[prompt.lost for prompt in prompts],
        gzip_bits=_gzip_bits(prompts),
        note=note,
    )


def _gzip_bits(prompts: Sequence[Prompt]) -> float:
    """Bits per token of each prompt's text alone; examples in front, known to both sides, cost nothing."""
    texts = [prompt.text for prompt in prompts]
    known = len(commonprefix(texts)) if prompts[0].around else 0  # noqa: RUF071 - no paths
    tokens = sum(len(prompt.ids) - prompt.fixed for prompt in prompts)
    return sum(8 * len(gzip.compress(text[known:].encode(), mtime=0)) for text in texts) / tokens

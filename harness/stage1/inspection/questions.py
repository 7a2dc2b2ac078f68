"""The questions of a run, each with the answer of every row."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from stage1.inspection.finished import rows_of
from stage1.runs.answers import Answer
from stage1.runs.run import Run

Kind = Literal["lost", "gained", "wrong"]


class Asked(BaseModel):
    """A question and how each row answered it."""

    model_config = ConfigDict(frozen=True)

    id: str
    question: str
    gold: tuple[str, ...]
    answers: dict[str, str]
    """Row → the LLM's answer."""
    f1: dict[str, float]
    """Row → 0 to 100."""
    right: dict[str, bool]
    """Row → whether the answer is one of the gold ones, up to case, articles and punctuation."""
    prompt: list[dict[str, Any]] | None = None
    """The prompt token by token, with the token that its reconstructed vector is nearest to."""

    def is_a(self, kind: Kind) -> bool:
        """Lost: the text was answered rightly, the bottleneck not. Gained: the reverse."""
        text, ours = self.right["text"], self.right["bottleneck"]
        return {"lost": text and not ours, "gained": ours and not text, "wrong": not ours}[kind]

    def holds(self, text: str) -> bool:
        """Whether `text` stands in the question, a gold answer or an answer, in upper or lower case."""
        texts = (self.id, self.question, *self.gold, *self.answers.values())
        return any(text.lower() in found.lower() for found in texts)


def questions(
    run: Run, results: Mapping[str, Any], kinds: Collection[Kind] = (), search: str = ""
) -> Iterator[Asked]:
    """The questions that were asked, in their order.

    Args:
        run: an evaluated one.
        results: its results.
        kinds: only those that are one of them; none: all.
        search: only those in which this stands.

    Raises:
        UsageError: the answers are missing or damaged.
    """
    rows = rows_of(run, results)
    for answers in zip(*rows.values(), strict=True):
        asked = _asked(dict(zip(rows, answers, strict=True)))
        if (not kinds or any(asked.is_a(kind) for kind in kinds)) and asked.holds(search):
            yield asked


def _asked(answers: Mapping[str, Answer]) -> Asked:
    first = answers["text"]
    return Asked(
        id=first.id,
        question=first.question,
        gold=first.gold,
        answers={row: answer.prediction for row, answer in answers.items()},
        f1={row: answer.f1 for row, answer in answers.items()},
        right={row: answer.right for row, answer in answers.items()},
    )

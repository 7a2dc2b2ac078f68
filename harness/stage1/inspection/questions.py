"""A finished run's results, and its questions, each with the answer of every row."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from pydantic import BaseModel

from stage1.errors import UsageError
from stage1.runs.run import Run

Kind = Literal["lost", "gained", "wrong"]


def evaluated(path: Path) -> tuple[Run, dict[str, Any]]:
    """A run and its results.

    Raises:
        UsageError: there is none, it is damaged, or was not evaluated.
    """
    run = Run.open(path)
    results = run.read_results()
    if results is None:
        run.require_trained()
        raise UsageError(f"{path} has no results.", f"Measure it: stage1 eval {quote(str(path))}")
    return run, results


class Asked(BaseModel, frozen=True):
    """A question and how each row answered it."""

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
        UsageError: the answers are missing or damaged, or the rows are about different questions.
    """
    rows = {row["row"]: run.read_answers(row["row"]) for row in results["rows"]}
    first = [(answer.id, *answer.asked) for answer in rows["text"]]
    for row, given in rows.items():
        if [(answer.id, *answer.asked) for answer in given] != first:
            raise UsageError(
                f"The row {row} of {run.path} answers other questions than the row text.",
                f"Measure it again: stage1 eval {quote(str(run.path))}",
            )
    for number, question in enumerate(rows["text"]):
        answers = {row: given[number] for row, given in rows.items()}
        asked = Asked(
            id=question.id,
            question=question.question,
            gold=question.gold,
            answers={row: answer.prediction for row, answer in answers.items()},
            f1={row: answer.f1 for row, answer in answers.items()},
            right={row: answer.right for row, answer in answers.items()},
        )
        if (not kinds or any(asked.is_a(kind) for kind in kinds)) and asked.holds(search):
            yield asked

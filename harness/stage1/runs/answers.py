"""The kept answers of a run: `predictions/<row>.jsonl`, a line for each question."""

import json
from collections.abc import Iterable
from typing import NamedTuple

from stage1.files import json_lines


class Answer(NamedTuple):
    """What the LLM answered to one question under one condition, and everything that its scores rest on."""

    id: str
    passage: str  # `passage_hash` of the text that the question is about
    question: str
    gold: tuple[str, ...]  # every answer that counts as right
    prediction: str
    f1: float  # 0 to 100
    exact_match: float  # 0 or 100
    cut: bool  # `eval.max_new_tokens` ended it

    @property
    def right(self) -> bool:
        """It is one of the gold answers, up to case, articles and punctuation."""
        return self.exact_match == 100

    @property
    def asked(self) -> tuple[str, str, tuple[str, ...]]:
        """The question without what was answered: passage, text, gold answers."""
        return self.passage, self.question, self.gold


def written(answers: Iterable[Answer]) -> bytes:
    """The content of a row's file."""
    return json_lines(answer._asdict() for answer in answers)


def read(content: bytes) -> list[Answer]:
    """The answers in a row's file.

    Raises:
        ValueError: it is none.
    """
    return [_parsed(line) for line in content.decode().split("\n") if line]


def _parsed(line: str) -> Answer:
    try:
        answer = Answer(**json.loads(line))
        texts = (answer.id, answer.passage, answer.question, answer.prediction, *answer.gold)
        numbers = (answer.f1, answer.exact_match)
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if not (all(isinstance(text, str) for text in texts) and answer.gold):
        raise ValueError("a text is missing")
    if not all(isinstance(number, int | float) and 0 <= number <= 100 for number in numbers):
        raise ValueError("a score is no number from 0 to 100")
    return answer._replace(gold=tuple(answer.gold))

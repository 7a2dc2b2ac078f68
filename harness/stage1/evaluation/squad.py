"""SQuAD's judge: answer normalisation, exact match and F1 of the official v1.1 script. Imports no torch.

Source: `evaluate-v1.1.py` of Rajpurkar, Zhang, Lopyrev and Liang, "SQuAD: 100,000+ Questions for Machine
Comprehension of Text" (2016). Its behaviour is kept to the letter, oddities included: an answer that
normalises to nothing ("The", "!") can match exactly and still has an F1 of 0.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from stage1.errors import UsageError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Answered(Protocol):
    """What scoring needs to know of a question."""

    @property
    def id(self) -> str: ...  # noqa: D102

    @property
    def answers(self) -> Sequence[str]: ...  # noqa: D102


class Score(NamedTuple):
    """Means over a data set, from 0 to 100."""

    n: int  # questions, predicted or not
    exact_match: float
    f1: float


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, single spaces."""
    bare = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction equals one of the answers after normalisation, else 0."""
    normalized = normalize_answer(prediction)
    return float(any(normalized == normalize_answer(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Overlap of words with the best of the answers, 0 to 1."""
    words = normalize_answer(prediction).split()
    return max(_word_f1(words, normalize_answer(answer).split()) for answer in answers)


def _word_f1(prediction: list[str], answer: list[str]) -> float:
    """Harmonic mean of the precision and the recall of the predicted words, counted with multiplicity."""
    common = (Counter(prediction) & Counter(answer)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(prediction), common / len(answer)
    return 2 * precision * recall / (precision + recall)


def score(dataset: Sequence[Answered], predictions: Mapping[str, str]) -> Score:
    """Score predictions (id → text) on a data set of at least one question; a missing prediction counts 0."""
    found = [(predictions[q.id], q.answers) for q in dataset if q.id in predictions]
    n = len(dataset)
    return Score(
        n=n,
        exact_match=100 * sum(exact_match(text, answers) for text, answers in found) / n,
        f1=100 * sum(f1(text, answers) for text, answers in found) / n,
    )


def read_predictions(path: Path, ids: Collection[str]) -> dict[str, str]:
    """The predictions in a JSON file of the official form, `{"<id>": "<text>", …}`.

    Args:
        path: the file.
        ids: the data set's ids; a file that answers none of them belongs to other data.

    Raises:
        UsageError: the file cannot be read, is not such a file, or knows none of the ids.
    """
    remedy = 'A predictions file is one JSON object from question ids to answers: {"<id>": "<text>", …}.'
    try:
        predictions = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"There is no predictions file {path}.", "Check the path.") from None
    except OSError as error:
        raise UsageError(f"Cannot read the predictions in {path}: {error.strerror}.", remedy) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The predictions in {path} are not valid JSON: {error}.", remedy) from None
    if not isinstance(predictions, dict):
        raise UsageError(f"{path} holds no JSON object but a {type(predictions).__name__}.", remedy)
    for key, text in predictions.items():
        if not isinstance(text, str):
            raise UsageError(f"The prediction for {key!r} in {path} is not a string.", remedy)
    if predictions.keys().isdisjoint(ids):
        problem = f"None of the {len(predictions)} ids in {path} is in the data set."
        raise UsageError(problem, "Score the predictions on the data they were made for.")
    return predictions

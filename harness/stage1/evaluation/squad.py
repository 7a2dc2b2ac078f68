"""SQuAD's judge: answer normalisation, exact match and F1 of the official v1.1 script. Imports no torch.

Source: `evaluate-v1.1.py` of Rajpurkar, Zhang, Lopyrev and Liang, "SQuAD: 100,000+ Questions for Machine
Comprehension of Text" (2016). Its behaviour is kept to the letter, oddities included: an answer that
normalises to nothing ("The", "!") can match exactly and still has an F1 of 0. Runs are judged by it whatever
their data; `score_v2` are the numbers of `evaluate-v2.0.py` (Rajpurkar, Jia and Liang, "Know What You Don't
Know", 2018), which knows unanswerable questions.
"""

import re
import string
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stage1.bounded import read_json
from stage1.data.records import Question
from stage1.errors import UsageError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


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


def character_f1(prediction: str, answers: Sequence[str]) -> float:
    """`f1` over characters in place of words, 0 to 1: for texts that put no spaces between words."""
    letters = list("".join(normalize_answer(prediction).split()))
    return max(_word_f1(letters, list("".join(normalize_answer(a).split()))) for a in answers)


_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese."""

WORDS_MISLEAD = (
    "These texts put no spaces between words, so that word-level F1 says little: it takes whole phrases for "
    "words. Go by the character-level F1."
)


def is_unspaced(questions: Sequence[str]) -> bool:
    """Whether most of `questions` are of a script that puts no spaces between words."""
    return 2 * sum(_UNSPACED.search(question) is not None for question in questions) > len(questions)


def score(dataset: Sequence[Question], predictions: Mapping[str, str]) -> Score:
    """Score predictions (id → text) on a data set of at least one question; a missing prediction counts 0."""
    found = [(predictions[q.id], q.answers) for q in dataset if q.id in predictions]
    n = len(dataset)
    return Score(
        n=n,
        exact_match=100 * sum(exact_match(text, answers) for text, answers in found) / n,
        f1=100 * sum(f1(text, answers) for text, answers in found) / n,
    )


class ScoreV2(NamedTuple):
    """What the official v2.0 script says: of all questions, of those with an answer, of those without."""

    total: Score
    has_answer: Score | None  # None: there are no such questions
    no_answer: Score | None


def score_v2(dataset: Sequence[Question], predictions: Mapping[str, str]) -> ScoreV2:
    """Score predictions (id → text) by the rules of SQuAD v2.0; a missing prediction counts 0.

    A question without answers is answered rightly by the empty text. The script knows a question by its id:
    of several with the same one, the last counts.
    """
    marks = {q.id: (bool(q.answers), *_marks_v2(predictions.get(q.id), q.answers)) for q in dataset}

    def mean(wanted: tuple[bool, ...]) -> Score | None:
        chosen = [(exact, overlap) for has_answer, exact, overlap in marks.values() if has_answer in wanted]
        if not chosen:
            return None
        exact, overlap = (100 * sum(values) / len(chosen) for values in zip(*chosen, strict=True))
        return Score(len(chosen), exact, overlap)

    total = mean((True, False))
    if total is None:
        raise ValueError("There is no question to score.")
    return ScoreV2(total, mean((True,)), mean((False,)))


def _marks_v2(prediction: str | None, answers: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1, 0 or 1 both where prediction or answer normalises to nothing."""
    if prediction is None:
        return 0.0, 0.0
    gold = [answer for answer in map(normalize_answer, answers) if answer] or [""]
    text = normalize_answer(prediction)
    exact = float(text in gold)
    return exact, exact if not text or gold == [""] else f1(prediction, gold)


_REMEDY = (
    'Pass a JSON object from question ids to answers, {"<id>": "<text>", …}, or a run\'s '
    "predictions/<row>.jsonl."
)


def read_predictions(path: Path, ids: Collection[str], foreign: str = "") -> dict[str, str]:
    """The predictions in a JSON file of the official form, `{"<id>": "<text>", …}`, or in a run's JSON Lines.

    Args:
        path: the file.
        ids: the data set's ids; a file that answers none of them belongs to other data.
        foreign: what to do about such a file.

    Raises:
        UsageError: the file cannot be read, is not such a file, or knows none of the ids.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        predictions = _by_line(text) if path.suffix.lower() == ".jsonl" else read_json(text)
    except FileNotFoundError:
        raise UsageError(f"There is no predictions file {path}.", "Check the path.") from None
    except OSError as error:
        raise UsageError(f"Cannot read the predictions in {path}: {error.strerror}.", _REMEDY) from None
    except ValueError as error:
        raise UsageError(f"The predictions in {path} are not valid JSON: {error}.", _REMEDY) from None
    if not isinstance(predictions, dict):
        raise UsageError(f"{path} holds no JSON object but a {type(predictions).__name__}.", _REMEDY)
    for key, text in predictions.items():
        if not isinstance(text, str):
            raise UsageError(f"The prediction for {key!r} in {path} is not a string.", _REMEDY)
    if predictions.keys().isdisjoint(ids):
        problem = f"None of the {len(predictions)} ids in {path} is in the data set."
        raise UsageError(problem, foreign or "Score the predictions on the data they were made for.")
    return predictions


def _by_line(text: str) -> dict[str, Any]:
    """The predictions in lines `{"id": …, "prediction": …}`, whatever else a line holds."""
    predictions = {}
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            entry = read_json(line)
            if not isinstance(entry, dict) or not {"id", "prediction"} <= entry.keys():
                raise ValueError(f"line {number} has no id and prediction")
            predictions[str(entry["id"])] = entry["prediction"]
    return predictions

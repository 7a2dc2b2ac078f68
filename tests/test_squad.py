"""The judge must be SQuAD's own: the published number on real predictions, and what F1 is by definition."""

import json
import string
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stage1.config import DataConfig
from stage1.data.datasets import load_qa
from stage1.errors import UsageError
from stage1.evaluation.squad import Score, exact_match, f1, normalize_answer, read_predictions, score

SQUAD = Path(__file__).parents[2] / "shared" / "data" / "squad"

# Few words, so that two texts often share some; every oddity the normalisation knows or should not know.
WORDS = st.sampled_from(
    [
        "the",
        "a",
        "An",
        "THE",
        "theatre",
        "cat",
        "Cat's",
        "cat-like",
        "1,000",
        "—",
        "!",
        "...",
        "Straße",
        "東京",
        "🙂",
    ]
)
TEXTS = st.one_of(st.lists(WORDS, max_size=6).map(" ".join), st.text(max_size=30))
FAIR = settings(deadline=None)  # a busy machine is no failure
ANSWERS = st.lists(TEXTS, min_size=1, max_size=4)


class Asked(NamedTuple):
    id: str
    answers: tuple[str, ...]


def words(text: str) -> list[str]:
    return normalize_answer(text).split()


def slow_f1(prediction: str, answer: str) -> Fraction:
    """2 × shared words / all words, exactly; a word of one text strikes off one of the other."""
    left, right = words(prediction), words(answer)
    rest, shared = list(right), 0
    for word in left:
        if word in rest:
            rest.remove(word)
            shared += 1
    return Fraction(2 * shared, len(left) + len(right)) if shared else Fraction(0)


@pytest.mark.skipif(not SQUAD.is_dir(), reason="the real SQuAD part is not on this machine")
def test_the_official_numbers_on_real_predictions() -> None:
    questions = load_qa(
        DataConfig.model_validate({"name": str(SQUAD / "dev-v1.1-part.json")}),
        everything_is_test=True,
    ).test
    file = SQUAD / "predictions-logistic-regression-part.json"
    predictions = read_predictions(file, {q.id for q in questions})
    assert len({q.id for q in questions} - predictions.keys()) == 4  # they count as wrong
    n, em, mean_f1 = score(questions, predictions)
    assert n == 4807
    assert em == pytest.approx(40.35781152485958, abs=1e-9)
    assert mean_f1 == pytest.approx(51.452149597727505, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat's\tpyjamas!", "cats pyjamas"),
        ("An a THE", ""),
        ("theatre an-a", "theatre ana"),  # only whole words are articles, and punctuation goes before them
        ("U.S. $3,000.50", "us 300050"),
        ("cat—the—dog", "cat— —dog"),  # a space replaces an article
        ("20–10 «oui»", "20–10 «oui»"),  # only ASCII punctuation goes
        ("L'Île\xa0de  France", "lîle de france"),
        ("ÀÉ ΣΑΣ", "àé σας"),
        ("a\u0301 b", "\u0301 b"),  # to the official script, a combining mark ends the word "a"
    ],
)
def test_normalisation(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


@FAIR
@given(TEXTS)
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalize_answer(normalize_answer(text)) == normalize_answer(text)


@FAIR
@given(TEXTS)
def test_articles_punctuation_case_and_spaces_do_not_count(text: str) -> None:
    assert not set(string.punctuation) & set(normalize_answer(text))
    assert normalize_answer(f" The {text}, a AN\n!") == normalize_answer(text)


@FAIR
@given(TEXTS, TEXTS)
def test_f1_is_twice_the_shared_words_over_all_words(prediction: str, answer: str) -> None:
    assert f1(prediction, [answer]) == pytest.approx(float(slow_f1(prediction, answer)), abs=1e-12)


@FAIR
@given(TEXTS, TEXTS)
def test_f1_is_symmetric(prediction: str, answer: str) -> None:
    assert f1(prediction, [answer]) == f1(answer, [prediction])


@FAIR
@given(st.lists(WORDS, max_size=6))
def test_f1_does_not_see_the_order_of_words(text: list[str]) -> None:
    backwards = " ".join(reversed(text))
    assert f1(" ".join(text), [backwards]) == float(bool(words(backwards)))


@FAIR
@given(TEXTS, TEXTS)
@example("cat cat", "cat")
@example("the", "the")
def test_f1_is_one_only_for_the_same_bag_of_words(prediction: str, answer: str) -> None:
    same = sorted(words(prediction)) == sorted(words(answer)) != []
    assert (f1(prediction, [answer]) == 1) == same


@FAIR
@given(TEXTS, ANSWERS)
@example("The", ["a"])
def test_bounds_and_what_a_match_implies(prediction: str, answers: list[str]) -> None:
    em, overlap = exact_match(prediction, answers), f1(prediction, answers)
    assert em in (0.0, 1.0)
    assert 0 <= overlap <= 1
    if em and words(prediction):
        assert overlap == 1
    if not words(prediction):  # official: nothing overlaps with nothing, and yet nothing matches nothing
        assert overlap == 0
        assert em == float(any(not words(answer) for answer in answers))


@FAIR
@given(TEXTS, ANSWERS, TEXTS)
def test_one_more_answer_never_lowers_the_score(prediction: str, answers: list[str], more: str) -> None:
    both = [*answers, more]
    assert exact_match(prediction, both) == max(exact_match(prediction, [a]) for a in both)
    assert f1(prediction, both) == max(f1(prediction, [a]) for a in both)
    assert exact_match(prediction, both) >= exact_match(prediction, answers)
    assert f1(prediction, both) >= f1(prediction, answers)


def test_score_is_a_mean_in_percent_and_a_missing_prediction_is_wrong() -> None:
    asked = [
        Asked("1", ("red cat",)),
        Asked("2", ("blue",)),
        Asked("3", ("x", "green dog")),
        Asked("4", ("y",)),
    ]
    found = score(asked, {"1": "The red cat.", "3": "dog", "4": "no", "of other data": "y"})
    assert found == Score(n=4, exact_match=25.0, f1=100 * (1 + 2 / 3) / 4)


def test_predictions_are_read_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "predictions.json"
    predictions = {"1": "東京 🙂", "2": "", "extra": "x"}
    file.write_text("\ufeff" + json.dumps(predictions), encoding="utf-8")
    assert read_predictions(file, ["2", "9"]) == predictions


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not valid JSON"),
        (b'{"1": "x"', "not valid JSON"),
        (b'{"1": "\xff"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'["x"]', "no JSON object but a list"),
        (b'{"1": null}', "prediction for '1'"),
        (b'{"1": ["x"]}', "prediction for '1'"),
        (b"{}", "None of the 0 ids"),
        (b'{"2": "x", "3": "y"}', "None of the 2 ids"),
    ],
)
def test_a_bad_predictions_file_is_named_with_a_remedy(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "predictions.json"
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_predictions(file, ["1"])
    assert told in caught.value.problem
    assert str(file) in caught.value.problem
    assert caught.value.remedy


def test_predictions_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no predictions file"):
        read_predictions(tmp_path / "absent.json", ["1"])
    with pytest.raises(UsageError, match="Is a directory"):
        read_predictions(tmp_path, ["1"])

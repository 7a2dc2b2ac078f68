"""The judge must be SQuAD's own: the published number on real predictions, and the official scripts' rules.

The rules are written out again here, as slowly and plainly as they can be.
"""

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conftest import SQUAD, Invoke
from stage1.config import DataConfig
from stage1.data.datasets import load_qa
from stage1.errors import UsageError
from stage1.evaluation.squad import exact_match, f1, normalize_answer, read_predictions, score

# Few words, so that two texts often share some; every oddity the normalisation knows or should not know.
WORDS = st.sampled_from(
    [
        *("the", "a", "An", "THE", "theatre", "cat", "Cat's", "cat-like"),
        *("1,000", "—", "!", "...", "Straße", "東京", "🙂"),
    ]
)
TEXTS = st.one_of(st.lists(WORDS, max_size=6).map(" ".join), st.text(max_size=30))
FAIR = settings(deadline=None)  # a busy machine is no failure
ANSWERS = st.lists(TEXTS, min_size=1, max_size=4)

Questions = list[dict[str, Any]]  # as they stand in the file

# -- the scripts, from their published rules -----------------------------------------------------------------


def plain(text: str) -> str:
    """Lower case; no ASCII punctuation; "a", "an" and "the" as whole words become spaces; single spaces."""
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    words: list[str] = []
    word = ""
    for letter in [*kept, " "]:
        if letter.isalnum() or letter == "_":
            word += letter
            continue
        words += [" " if word in ("a", "an", "the") else word, letter]
        word = ""
    return " ".join("".join(words).split())


def overlap(prediction: str, gold: str, *, empty_counts: bool) -> float:
    ours, theirs = plain(prediction).split(), plain(gold).split()
    if empty_counts and (not ours or not theirs):
        return float(ours == theirs)
    left, common = list(theirs), 0
    for word in ours:
        if word in left:
            left.remove(word)
            common += 1
    if common == 0:
        return 0.0
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)


def official_v1(questions: Questions, predictions: dict[str, str]) -> tuple[int, float, float]:
    """evaluate-v1.1.py: every question of the file counts, and one without a prediction as 0."""
    exact, f1 = 0.0, 0.0
    for qa in questions:
        if qa["id"] in predictions:
            prediction, golds = predictions[qa["id"]], [answer["text"] for answer in qa["answers"]]
            exact += max(float(plain(prediction) == plain(gold)) for gold in golds)
            f1 += max(overlap(prediction, gold, empty_counts=False) for gold in golds)
    return len(questions), 100 * exact / len(questions), 100 * f1 / len(questions)


def official_v2(questions: Questions, predictions: dict[str, str]) -> dict[str, tuple[int, float, float]]:
    """evaluate-v2.0.py: gold texts that normalise to nothing are dropped; none left means the empty one."""
    exact: dict[str, float] = {}
    f1: dict[str, float] = {}
    has_answer: dict[str, bool] = {}
    for qa in questions:
        has_answer[qa["id"]] = bool(qa["answers"])
        golds = [answer["text"] for answer in qa["answers"] if plain(answer["text"])] or [""]
        prediction = predictions[qa["id"]]
        exact[qa["id"]] = max(float(plain(prediction) == plain(gold)) for gold in golds)
        f1[qa["id"]] = max(overlap(prediction, gold, empty_counts=True) for gold in golds)

    def mean(ids: list[str]) -> tuple[int, float, float]:
        total = len(ids)
        return total, 100 * sum(exact[i] for i in ids) / total, 100 * sum(f1[i] for i in ids) / total

    return {
        "total": mean(list(exact)),
        "has_answer": mean([i for i in exact if has_answer[i]]),
        "no_answer": mean([i for i in exact if not has_answer[i]]),
    }


# -- single answers ------------------------------------------------------------------------------------------


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
@given(TEXTS, TEXTS)
@example("cat cat", "cat")
@example("the", "the")
def test_an_answer_is_scored_as_the_script_scores_it(prediction: str, answer: str) -> None:
    assert normalize_answer(prediction) == plain(prediction)
    expected = overlap(prediction, answer, empty_counts=False)
    assert f1(prediction, [answer]) == pytest.approx(expected, abs=1e-12)
    assert exact_match(prediction, [answer]) == (plain(prediction) == plain(answer))


@FAIR
@given(TEXTS, ANSWERS)
def test_of_several_answers_the_best_counts(prediction: str, answers: list[str]) -> None:
    assert exact_match(prediction, answers) == max(exact_match(prediction, [a]) for a in answers)
    assert f1(prediction, answers) == max(f1(prediction, [a]) for a in answers)


# -- files of predictions ------------------------------------------------------------------------------------


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


# -- whole files, through the command ------------------------------------------------------------------------

# passage; then (question, gold texts, prediction)
LANGUAGES: dict[str, tuple[str, list[tuple[str, list[str], str]]]] = {
    "english": (
        "The ferry Alma carries 30 sailors and a cook to the Isle of Wend.",
        [
            ("How many sailors?", ["30 sailors", "30", "30"], "The 30 sailors!"),
            ("Who cooks?", ["", "a cook"], ""),
            ("What article?", ["The", "a"], "an"),
            ("Where to?", ["the Isle of Wend", "Isle of Wend"], "the isle, Wend"),
            ("Which ferry?", ["Alma", ""], "the"),
        ],
    ),
    "german": (
        "Die Fähre Alma fährt mit 30 Matrosen zur Insel Süderöd an der Straße.",
        [
            ("Wie viele Matrosen?", ["30 Matrosen"], "30 matrosen"),
            ("Wohin?", ["zur Insel Süderöd", "Süderöd"], "Insel SÜDERÖD"),
            ("Woran?", ["an der Straße"], "an der Strasse"),
            ("Wer?", [""], "niemand"),
        ],
    ),
    "chinese": (
        "渡船阿尔玛号载有三十名水手,开往文德岛。",
        [
            ("有多少名水手?", ["三十名水手", "三十名"], "三十名水手。"),
            ("开往哪里?", ["文德岛", "文德岛"], "文德岛"),
            ("谁做饭?", ["", "厨师"], " "),
        ],
    ),
    "arabic": (
        "تحمل العبارة ألما ثلاثين بحارًا إلى جزيرة وند.",
        [
            ("كم عدد البحارة؟", ["ثلاثين بحارًا", "ثلاثين"], "ثلاثين"),
            ("إلى أين؟", ["جزيرة وند"], "إلى جزيرة وند."),
            ("من يطبخ؟", [""], ""),
        ],
    ),
    "russian": (
        "Паром «Альма» везёт 30 матросов и кока на остров Венд.",
        [
            ("Сколько матросов?", ["30 матросов", "30"], "30 Матросов"),
            ("Как называется паром?", ["«Альма»", "Альма"], "альма"),
            ("Куда?", ["на остров Венд", "остров Венд"], "остров a Венд"),
            ("Кто?", ["", "!"], "..."),
        ],
    ),
}


def written(language: str, *, v2: bool) -> tuple[Questions, dict[str, str]]:
    """The file's questions and the predictions; the first stands in it twice, the last is unasked."""
    context, asked = LANGUAGES[language]
    qas: Questions = []
    predictions = {}
    for number, (question, golds, prediction) in enumerate(asked):
        answers = [{"text": text, "answer_start": max(0, context.find(text))} for text in golds]
        qas.append({"id": f"{language}-{number}", "question": question, "answers": answers})
        predictions[f"{language}-{number}"] = prediction
    qas.append({**qas[0], "question": qas[0]["question"] + " "})
    if v2:
        qas = [{**qa, "is_impossible": False} for qa in qas]
        for number, prediction in enumerate(("", "30", "the")):
            plausible = [{"text": "30", "answer_start": 0}]
            qa = {"question": "?", "answers": [], "plausible_answers": plausible, "is_impossible": True}
            qas.append({"id": f"none-{number}", **qa})
            predictions[f"none-{number}"] = prediction
    else:
        qas.append({"id": "missing", "question": "?", "answers": [{"text": "x", "answer_start": 0}]})
    return qas, predictions


def scored(invoke: Invoke, language: str, questions: Questions, version: str, predictions: Any) -> Any:
    """What the command says, run in the folder of its files."""
    paragraph = {"context": LANGUAGES[language][0], "qas": questions}
    data = {"version": version, "data": [{"title": language, "paragraphs": [paragraph]}]}
    Path("data.json").write_text(json.dumps(data), encoding="utf-8")
    Path("predictions.json").write_text(json.dumps(predictions), encoding="utf-8")
    return json.loads(invoke("score", "data.json", "predictions.json", "--json").printed)


def numbers(found: dict[str, Any]) -> Any:
    return pytest.approx((found["n"], found["exact_match"], found["f1"]), abs=1e-9)


@pytest.mark.parametrize("language", LANGUAGES)
def test_v1_files(invoke: Invoke, language: str) -> None:
    questions, predictions = written(language, v2=False)
    found = scored(invoke, language, questions, "1.1", predictions)
    assert official_v1(questions, predictions) == numbers(found)
    assert (found["answered"], "v2" in found) == (found["n"] - 1, False)


@pytest.mark.parametrize("language", LANGUAGES)
def test_v2_files(invoke: Invoke, language: str) -> None:
    questions, predictions = written(language, v2=True)
    found = scored(invoke, language, questions, "v2.0", predictions)
    for part, official in official_v2(questions, predictions).items():
        assert official == numbers(found["v2"][part]), part
    assert found["v2"]["no_answer"]["n"] == 3
    assert found["v2"]["no_answer"]["exact_match"] == pytest.approx(200 / 3)
    answerable = [qa for qa in questions if qa["answers"]]
    assert official_v1(answerable, predictions) == numbers(found), "the main numbers stay v1.1's"

"""`score` against the official scripts' rules, written out again here as slowly and plainly as they can be.

The files are SQuAD-like in five languages, with empty gold texts, repeated questions, repeated answers,
plausible answers and questions without an answer.
"""

import json
import string
from pathlib import Path
from typing import Any

import pytest

from conftest import Invoke

Article = dict[str, Any]

# --- The scripts, from their published rules ----------------------------------------------------------------


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


def official_v1(articles: list[Article], predictions: dict[str, str]) -> tuple[int, float, float]:
    """evaluate-v1.1.py: every question of the file counts, and one without a prediction as 0."""
    total, exact, f1 = 0, 0.0, 0.0
    for article in articles:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                total += 1
                if qa["id"] not in predictions:
                    continue
                prediction, golds = predictions[qa["id"]], [answer["text"] for answer in qa["answers"]]
                exact += max(float(plain(prediction) == plain(gold)) for gold in golds)
                f1 += max(overlap(prediction, gold, empty_counts=False) for gold in golds)
    return total, 100 * exact / total, 100 * f1 / total


def official_v2(articles: list[Article], predictions: dict[str, str]) -> dict[str, tuple[int, float, float]]:
    """evaluate-v2.0.py: gold texts that normalise to nothing are dropped; none left means the empty one."""
    exact: dict[str, float] = {}
    f1: dict[str, float] = {}
    has_answer: dict[str, bool] = {}
    for article in articles:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
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


# --- The files ----------------------------------------------------------------------------------------------

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


def written(language: str, *, v2: bool) -> tuple[list[Article], dict[str, str]]:
    """The file's articles and the predictions; the first question stands in it twice, the last unasked."""
    context, asked = LANGUAGES[language]
    qas: list[dict[str, Any]] = []
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
    return [{"title": language, "paragraphs": [{"context": context, "qas": qas}]}], predictions


def scored(folder: Path, invoke: Invoke, articles: list[Article], version: str, predictions: Any) -> Any:
    (folder / "data.json").write_text(json.dumps({"version": version, "data": articles}), encoding="utf-8")
    (folder / "predictions.json").write_text(json.dumps(predictions), encoding="utf-8")
    done = invoke("score", str(folder / "data.json"), str(folder / "predictions.json"), "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def numbers(found: dict[str, Any]) -> Any:
    return pytest.approx((found["n"], found["exact_match"], found["f1"]), abs=1e-9)


@pytest.mark.parametrize("language", LANGUAGES)
def test_v1_files(tmp_path: Path, invoke: Invoke, language: str) -> None:
    articles, predictions = written(language, v2=False)
    found = scored(tmp_path, invoke, articles, "1.1", predictions)
    assert official_v1(articles, predictions) == numbers(found)
    assert (found["answered"], "v2" in found) == (found["n"] - 1, False)


@pytest.mark.parametrize("language", LANGUAGES)
def test_v2_files(tmp_path: Path, invoke: Invoke, language: str) -> None:
    articles, predictions = written(language, v2=True)
    found = scored(tmp_path, invoke, articles, "v2.0", predictions)
    for part, official in official_v2(articles, predictions).items():
        assert official == numbers(found["v2"][part]), part
    assert found["v2"]["no_answer"]["n"] == 3
    assert found["v2"]["no_answer"]["exact_match"] == pytest.approx(200 / 3)
    [article] = articles
    answerable = [qa for qa in article["paragraphs"][0]["qas"] if qa["answers"]]
    only = [{"paragraphs": [{**article["paragraphs"][0], "qas": answerable}]}]
    assert official_v1(only, predictions) == numbers(found), "the main numbers are v1.1's, on v2 data too"


def test_empty_gold_texts_match_empty_predictions_and_have_no_f1(tmp_path: Path, invoke: Invoke) -> None:
    golds = {"a": ["", "30 oars"], "b": ["31 oars", ""], "c": ["32"]}
    qas = [
        {"id": i, "question": "?", "answers": [{"text": text, "answer_start": -1} for text in texts]}
        for i, texts in golds.items()
    ]
    articles = [{"title": "t", "paragraphs": [{"context": "Oars.", "qas": qas}]}]
    found = scored(tmp_path, invoke, articles, "1.1", {"a": "", "b": "the", "c": "32"})
    assert found == {"n": 3, "exact_match": 100.0, "f1": pytest.approx(100 / 3), "answered": 3}

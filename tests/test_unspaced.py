"""Texts without spaces between words: a warning of word-level F1, and a character-level one beside it."""

import json
from pathlib import Path

import pytest

from conftest import Invoke, Notes, small_config
from stage1.evaluation.squad import character_f1, is_unspaced
from stage1.experiment import train_run
from stage1.reports.report import summary

PLACES = ["北京", "上海", "廣州", "成都", "西安", "杭州"]


def records(number: int) -> list[dict[str, object]]:
    """Each passage names a city; `number` of them."""
    return [
        {
            "id": f"q{n}",
            "title": "t",
            "context": f"第{n}號塔在{PLACES[n % 6]}市中心。",
            "question": f"第{n}號塔在哪裡?",
            "answers": {"text": [f"{PLACES[n % 6]}市中心"], "answer_start": [4]},
        }
        for n in range(number)
    ]


def test_character_f1_is_that_of_characters() -> None:
    assert character_f1("北京市", ["北京市中心"]) == pytest.approx(2 * 1 * 0.6 / 1.6)
    assert character_f1("the 北京 市", ["北京市"]) == 1
    assert character_f1("", ["北京"]) == 0
    assert character_f1("京京", ["北京", "京"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "unspaced"),
    [
        ("塔はどこですか", True),
        ("หอคอยอยู่ที่ไหน", True),
        ("Where is the tower?", False),
        ("탑은 어디에 있습니까", False),
    ],
)
def test_the_scripts(text: str, unspaced: bool) -> None:
    assert is_unspaced([text]) == unspaced


def test_score_gives_it_beside_the_official_number(tmp_path: Path, invoke: Invoke) -> None:
    data = tmp_path / "zh.json"
    data.write_text(json.dumps(records(4)), encoding="utf-8")
    given = {"q0": "北京市", "q1": "上海市中心"}
    (tmp_path / "p.json").write_text(json.dumps(given), encoding="utf-8")
    shown = invoke("score", "zh.json", "p.json", "--json")
    found = json.loads(shown.out)
    assert (found["f1"], found["exact_match"]) == (25, 25)
    assert found["character_f1"] == pytest.approx(100 * (0.75 + 1) / 4)
    plain = invoke("score", "zh.json", "p.json")
    assert "character-level F1 43.75" in plain.out
    assert "no spaces between words" in plain.err


def test_an_evaluation_has_it_in_every_row(tmp_path: Path) -> None:
    data = tmp_path / "zh.json"
    data.write_text(json.dumps(records(30)), encoding="utf-8")
    notes = Notes()
    config = small_config(
        f"data={data}", "train.steps=0", "eval.limit=3", "eval.max_new_tokens=4", f"output={tmp_path / 'run'}"
    )
    evaluation = train_run(config, notes).evaluation
    assert evaluation is not None
    assert all(0 <= row["character_f1"] <= 100 for row in evaluation.results["rows"])
    assert any("no spaces between words" in note for note in notes.notes)
    assert any("character-level F1. It is: text" in line for line in summary(evaluation.results))

"""Data as other people publish and export them: read as what they say, or left out, counted and named."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qa_files import EXPECTED, NO_ANSWER, RECORDS, Record, csv_json, load, nested, record, written
from stage1.config import DataConfig, validate
from stage1.data.answers import gold_answers
from stage1.data.datasets import load_qa
from stage1.data.records import Question
from stage1.data.sources import find_source
from stage1.errors import ConfigError, UsageError
from stage1.files import json_lines

# --- Formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(json_lines(RECORDS))[:-20]])
def test_a_damaged_gzip_file_is_said_in_a_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match=r"is not a complete gzip file|is empty"):
        load(written(tmp_path, "h.jsonl.gz", content))


def test_fields_of_any_length(tmp_path: Path) -> None:
    long = "word " * 40_000  # longer than the csv module's own limit of 131,072 characters
    before = csv.field_size_limit()
    data = load(written(tmp_path, "long.csv", csv_json([record(1, context=long), record(2)])))
    assert data.test[0].context == long
    assert csv.field_size_limit() == before, "other code's limit was changed"


# --- Answers ------------------------------------------------------------------------------------------------

AS_TEXT = [
    ('{"text": ["30 oars", "30"], "answer_start": [2, 2]}', ("30 oars", "30")),
    ("{'text': ['30 oars', '30'], 'answer_start': [2, 2]}", ("30 oars", "30")),
    ("{'answer_start': [2], 'text': [\"the crew's\"]}", ("the crew's",)),
    ("{'text': array(['30 oars', '30'], dtype=object), 'answer_start': array([2, 2], dtype=int32)}",
     ("30 oars", "30")),
    ("{'text': array(['30 oars',\n       '30'], dtype=object)}", ("30 oars", "30")),
    ("{'text': np.array(['30 oars'], dtype='<U7'), 'answer_start': np.array([-1])}", ("30 oars",)),
    ("['30 oars' '30']", ("30 oars", "30")),
    ("['30 oars'\n '30']", ("30 oars", "30")),
    ("[np.str_('30 oars'), np.str_('30')]", ("30 oars", "30")),
    ("[{'text': '30 oars', 'answer_start': 2}\n {'text': '30', 'answer_start': -1}]", ("30 oars", "30")),
    ("[{'text': '', 'answer_start': nan}, {'text': '30', 'answer_start': None}]", ("", "30")),
    ('["30 oars", "30"]', ("30 oars", "30")),
    ("('30',)", ("('30',)",)),  # nothing writes answers so: an answer in brackets
    ("[sic]", ("[sic]",)),
    ("{1, 2}", ("{1, 2}",)),
    ("30", ("30",)),
    ("", ("",)),
    ("[]", None),
    ("{'text': array([], dtype=object), 'answer_start': array([], dtype=int32)}", ()),
    ('{"text": [], "answer_start": []}', ()),
]  # fmt: skip


@pytest.mark.parametrize(("text", "answers"), AS_TEXT)
def test_the_text_of_a_structure_is_read_as_what_it_says(text: str, answers: tuple[str, ...] | None) -> None:
    assert gold_answers(text) == answers
    assert gold_answers([text, "more"]) in ((text, "more"), (*(answers or ()), "more"))


@pytest.mark.parametrize(
    "text",
    [
        "{'text': [open('x')]}",
        "{'text': __import__('os').getcwd()}",
        "{'text': array(['a', ..., 'z'], dtype=object)}",
        "{'text': ['a'",
        "{'spans': ['a']}",
        "['a' + 'b']",
        "{'text': [f'{1}']}",
        "['a', " * 5_000,
        "{'text': " * 5_000,
    ],
    ids=lambda text: text[:30],
)
def test_what_cannot_be_read_is_refused_and_never_an_answer(text: str) -> None:
    with pytest.raises(ValueError, match="answer"):
        gold_answers(text)


@pytest.mark.parametrize("kind", ["dicts", "arrays", "plain arrays", "datasets"])
def test_what_pandas_and_datasets_write_is_read(tmp_path: Path, kind: str) -> None:
    """Written by the libraries themselves, so that what they do today is what is read."""
    path = tmp_path / "written.csv"
    if kind == "datasets":
        from datasets import Dataset

        Dataset.from_list(RECORDS).to_csv(str(path))
    else:
        frame = pd.DataFrame(RECORDS)
        if kind == "arrays":
            frame["answers"] = [
                {"text": np.array(a["text"], dtype=object), "answer_start": np.array(a["answer_start"])}
                for a in frame["answers"]
            ]
        elif kind == "plain arrays":
            frame["answers"] = [np.array(a["text"], dtype=object) for a in frame["answers"]]
        frame.to_csv(path, index=False)
    assert load(path).test == EXPECTED


def test_the_hubs_way_to_say_unanswerable_in_a_flat_file(tmp_path: Path) -> None:
    as_text, empty = record(2, answers=json.dumps(NO_ANSWER)), record(4, answers=[])
    rows = [record(1), as_text, record(3, answers=NO_ANSWER), empty]
    data = load(written(tmp_path, "a.jsonl", json_lines(rows)))
    assert [q.id for q in data.test] == ["q1"]
    assert (data.unanswerable, data.left_out) == (2, {"no answer": 1})


# --- What makes a file one of SQuAD v2 ----------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.1", "v1.1", "2019-06-01", "2", 2, 2.0, "v2.0", "21", "2nd", None])
def test_only_version_two_is_version_two(tmp_path: Path, version: object) -> None:
    records = [record(1), record(2, answers=NO_ANSWER)]
    data = load(written(tmp_path, "h.json", nested(records, version)))
    assert [q.id for q in data.test] == ["q1"]
    v2 = str(version) in ("2", "2.0", "v2.0")
    assert (data.unanswerable, data.left_out) == ((1, {}) if v2 else (0, {"no answer": 1}))


def test_an_empty_text_is_an_answer(tmp_path: Path) -> None:
    def answered(*texts: str) -> Record:
        return {"text": texts, "answer_start": [-1] * len(texts)}

    records = [
        record(1, is_impossible=False, answers=answered("")),
        record(2, is_impossible=False, answers=answered("", "x")),
        record(3, is_impossible=True, answers=answered(), plausible_answers=[{"text": "y"}]),
        record(4, is_impossible=True, answers=answered("z")),
    ]
    data = load(written(tmp_path, "v2.json", nested(records, "v2.0")))
    assert [(q.id, q.answers) for q in data.test] == [("q1", ("",)), ("q2", ("", "x"))]
    assert [q.gold for q in data.test] == ["", "x"], "what is trained on has words, where an answer has"
    assert data.unanswerable == 2


# --- Bad records --------------------------------------------------------------------------------------------

BAD: dict[str, Record] = {
    "a blank question": record(1, question=" \t"),
    "no question": record(2, question=None),
    "a context that is not a text": record(3, context=7),
    "no answer": record(4, answers=None),
    "an answer that is not a text": record(5, answers={"text": [5]}),
    "answers that cannot be read": record(6, answers="{'text': ["),
    "half of a surrogate pair": record(7, question="\ud800"),
    "the id of an earlier one": record(10),
}


def test_a_bad_record_is_left_out_counted_and_named(tmp_path: Path) -> None:
    rows = [*RECORDS, *BAD.values(), *(record(n, question="", id=None) for n in range(30, 35))]
    path = written(tmp_path, "h.jsonl", json_lines(rows))
    data = load(path)
    assert data.test == EXPECTED
    assert data.left_out == dict.fromkeys(BAD, 1) | {"a blank question": 6}
    (note,) = data.notes
    assert "13 records left out" in note
    assert "6 with a blank question (question 'q1', record 21, record 22 and 3 more)" in note
    assert "1 with the id of an earlier one (question 'q10')" in note
    with pytest.raises(UsageError, match="13 records left out") as caught:
        load(path, strict=True)
    assert "--strict" in caught.value.remedy
    assert load(written(tmp_path, "good.jsonl", json_lines(RECORDS)), strict=True).test == EXPECTED


def test_ids_are_made_from_what_a_question_says(tmp_path: Path) -> None:
    bare = [{key: value for key, value in r.items() if key != "id"} for r in RECORDS]
    data = load(written(tmp_path, "h.jsonl", json_lines(bare)))
    ids = [q.id for q in data.test]
    assert len(set(ids)) == len(ids) == 12
    assert "12 questions" in data.notes[0]
    assert "made from their content" in data.notes[0]
    again = load(written(tmp_path, "other.json", json.dumps(bare[::-1])))
    assert [q.id for q in again.test] == ids[::-1], "they depend on the file or the order"
    assert load(written(tmp_path, "twice.jsonl", json_lines([*bare, bare[0]]))).left_out == {
        "the id of an earlier one": 1
    }
    some = load(written(tmp_path, "some.jsonl", json_lines([bare[0], *RECORDS[1:]])))
    assert [q.id for q in some.test] == [ids[0], *(q.id for q in EXPECTED[1:])]


# --- Formats of their own -----------------------------------------------------------------------------------


def test_mrqa(tmp_path: Path) -> None:
    detected = [{"text": "12 bells", "char_spans": [[4, 11]]}]
    qas = [
        {"qid": "m1", "question": "How many?", "answers": ["twelve", "12"], "detected_answers": detected},
        {"qid": "m2", "question": "How many bells?", "answers": [], "detected_answers": detected},
    ]
    passage = {"id": "", "context": "The tower has 12 bells.", "qas": qas, "context_tokens": [["The", 0]]}
    text = json_lines([{"header": {"dataset": "Towers", "split": "dev"}}, passage])
    for name, content in (("m.jsonl", text), ("m.jsonl.gz", gzip.compress(text))):
        data = load(written(tmp_path, name, content))
        assert data.test == [
            Question("m1", "", "The tower has 12 bells.", "How many?", ("twelve", "12")),
            Question("m2", "", "The tower has 12 bells.", "How many bells?", ("12 bells",)),
        ]


def test_hotpotqa_of_its_authors_and_of_the_hub(tmp_path: Path) -> None:
    row = {"_id": "p1", "question": "Which river?", "answer": "the Olm", "type": "bridge", "level": "easy"}
    own = {
        **row,
        "supporting_facts": [["Varda", 0]],
        "context": [["Varda", ["A town", " on the Olm."]], ["Olm", []]],
    }
    hub = {
        **row,
        "id": "p1",
        "context": {"title": ["Varda", "Olm"], "sentences": [["A town", " on the Olm."], []]},
    }
    for name, content in (("own.json", json.dumps([own])), ("hub.jsonl", json_lines([hub]))):
        [question] = load(written(tmp_path, name, content)).test
        assert question == Question(
            "p1", "", "Varda: A town on the Olm.\nOlm: ", "Which river?", ("the Olm",)
        )


def test_triviaqa_with_and_without_its_documents(tmp_path: Path) -> None:
    answer = {"Value": "Olm", "Aliases": ["River Olm", "Olm"], "NormalizedAliases": ["river olm"]}
    row = {
        "QuestionId": "tc_1",
        "Question": "Which river flows through Varda?",
        "Answer": answer,
        "EntityPages": [{"Filename": "Varda.txt", "Title": "Varda"}, {"Filename": "../../secret.txt"}],
        "SearchResults": [{"Filename": "1/1_2.txt", "Description": "Varda lies on the Olm."}],
    }
    bare = {"QuestionId": "tc_2", "Question": "And where?", "Answer": answer, "EntityPages": []}
    content = json.dumps({"Data": [row, bare], "Domain": "Wikipedia", "Version": 1.0})
    (tmp_path / "qa").mkdir()
    path = written(tmp_path / "qa", "wikipedia-dev.json", content)
    data = load(path)
    assert [q.context for q in data.test] == ["Varda lies on the Olm."]
    assert data.test[0].answers == ("Olm", "River Olm")
    assert data.left_out == {"no context": 1}

    (tmp_path / "evidence" / "wikipedia").mkdir(parents=True)
    written(tmp_path / "evidence" / "wikipedia", "Varda.txt", "Varda is a town.\n")
    written(tmp_path, "secret.txt", "not a document")
    assert [q.context for q in load(path).test] == ["Varda is a town."]

    hub = {
        "question_id": "tc_1",
        "question": "Which river flows through Varda?",
        "answer": {"value": "Olm", "aliases": ["River Olm"], "type": "WikipediaEntity"},
        "entity_pages": {"title": ["Varda"], "wiki_context": ["Varda is a town."]},
        "search_results": {"search_context": [], "description": []},
    }
    assert load(written(tmp_path, "hub.jsonl", json_lines([hub]))).test == [
        Question("tc_1", "", "Varda is a town.", "Which river flows through Varda?", ("Olm", "River Olm"))
    ]


def test_columns_of_any_name(tmp_path: Path) -> None:
    rows = [{"nr": 5, "doc": {"body": "The Olm is long."}, "q": "What is?", "gold": {"main": "the Olm"}}]
    fields = {"id": "nr", "context": "doc.body", "question": "q", "answer": "gold.main"}
    path = written(tmp_path, "own.jsonl", json_lines(rows))
    assert load(path, fields=fields).test == [Question("5", "", "The Olm is long.", "What is?", ("the Olm",))]
    with pytest.raises(UsageError, match="1 with no context") as caught:
        load(path)
    assert "'nr', 'doc', 'q', 'gold'" in caught.value.problem
    assert "--set data.fields." in caught.value.remedy
    with pytest.raises(ConfigError, match=r"data\.fields\.answers: unknown option\. Did you mean 'answer'"):
        validate({"data": {"fields": {"answers": "x"}}})


# --- Training and test files --------------------------------------------------------------------------------


def test_train_and_test_files_as_they_are_published(tmp_path: Path) -> None:
    train = written(tmp_path, "a,train=1.json", json.dumps([record(n) for n in range(40)]))
    test = written(tmp_path, "b.json", json.dumps([record(n, id=f"t{n}") for n in range(38, 50)]))
    for name in (f"train={train},test={test}", f"test={test},train={train}"):
        data = load(name, splits=True)
        assert [q.id for q in data.test] == [f"t{n}" for n in range(38, 50)]
        assert (len(data.train), len(data.selection)) == (34, 4)
        passages = [{q.context for q in split} for split in (data.train, data.selection, data.test)]
        assert len(set.union(*passages)) == sum(map(len, passages)), "two splits share a passage"
        assert any("2 training questions with a passage of the test questions" in note for note in data.notes)
    alone = load(test)
    assert (alone.test, alone.content) == (data.test, data.content)
    config = validate({"data": f"train={train},test={test}"}).data
    assert (config.name, config.train_from) == (str(test), str(train))


# --- Data sets known by their content -----------------------------------------------------------------------


def test_a_data_set_is_known_whatever_its_name_format_and_order(tmp_path: Path) -> None:
    rows = [record(n) for n in range(40)]
    own = load(written(tmp_path, "a.json", json.dumps(rows)), splits=True)
    copy = written(tmp_path, "copy.csv", csv_json(rows))
    again = load_qa(DataConfig(name=str(copy)), trained_on=own.trained_on)
    assert (again.test, again.sha256, again.notes) == (own.test, own.sha256, ())

    backwards = written(tmp_path, "b.jsonl", json_lines(rows[::-1]))
    assert load_qa(DataConfig(name=str(backwards)), trained_on=own.trained_on).test == own.test[::-1]


def test_of_other_data_the_passages_that_were_seen_are_left_out(tmp_path: Path) -> None:
    own = load(written(tmp_path, "a.json", json.dumps([record(n) for n in range(40)])), splits=True)
    seen = {q.context for q in (*own.train, *own.selection)}
    rows = [record(n, id=f"o{n}", question="And now?") for n in range(30, 60)]
    rows = [{**row, "context": row["context"].replace(" ", "  ")} for row in rows]
    other = load_qa(
        DataConfig(name=str(written(tmp_path, "b.json", json.dumps(rows)))), trained_on=own.trained_on
    )
    fresh = [row["id"] for row in rows if row["context"].replace("  ", " ") not in seen]
    assert [q.id for q in other.test] == fresh
    assert 20 <= len(fresh) < 30
    assert list(other.left_out.values()) == [30 - len(fresh)]
    assert f"{30 - len(fresh)} questions with a passage that the run has seen" in other.notes[0]

    known = [{**row, "context": min(seen)} for row in rows]
    with pytest.raises(UsageError, match="has seen every passage"):
        load_qa(
            DataConfig(name=str(written(tmp_path, "c.json", json.dumps(known)))), trained_on=own.trained_on
        )


def test_the_reading_of_a_file_keeps_repeated_questions_where_it_is_asked_to(tmp_path: Path) -> None:
    path = written(tmp_path, "h.jsonl", json_lines([record(1), record(1), record(2)]))
    for repeated, ids in ((True, ["q1", "q1", "q2"]), (False, ["q1", "q2"])):
        source = find_source(str(path), DataConfig(), repeated=repeated)
        assert [q.id for q in source.read("test", None).questions] == ids

"""Data sets and files: nothing is lost or mixed up silently, and every bad file says what is wrong."""

import gzip
import io
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qa_files import EXPECTED, NO_ANSWER, RECORDS, Record, csv_json, csv_plain, load, nested, record, written
from stage1.data.datasets import QAData, spread
from stage1.data.records import Question
from stage1.errors import UsageError
from stage1.files import json_lines

# --- Every format -------------------------------------------------------------------------------------------


def parquet(records: list[Record], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), sink, **options)
    return sink.getvalue()


def parquet_bomb(**options: Any) -> bytes:
    """A text of a megabyte in each of 200 rows, which takes a few kilobytes of a file."""
    return parquet([record(1, context="x" * 1_000_000)] * 200, compression="zstd", **options)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("nested.json", nested(RECORDS)),
        ("list.json", json.dumps(RECORDS).encode()),
        ("under data.json", json.dumps({"data": RECORDS}).encode()),
        ("lines by another name.json", json_lines(RECORDS)),
        ("lines.jsonl", json_lines(RECORDS)),
        ("lines.ndjson", json_lines(RECORDS)),
        ("windows.JSONL", b"\xef\xbb\xbf" + json_lines(RECORDS).replace(b"}\n", b"}\r\n")),
        ("rows.parquet", parquet(RECORDS)),
        ("groups.parquet", parquet(RECORDS, row_group_size=3)),
        (
            "delta.parquet",
            parquet(RECORDS, use_dictionary=False, column_encoding={"context": "DELTA_BYTE_ARRAY"}),
        ),
        ("rows.csv", csv_json(RECORDS)),
        ("excel.csv", b"\xef\xbb\xbf" + csv_json(RECORDS)),
        ("rows.tsv", csv_json(RECORDS, "\t")),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_every_format_gives_the_same_questions(
    tmp_path: Path, name: str, content: bytes, packed: bool
) -> None:
    file = written(tmp_path, f"{name}.gz" if packed else name, gzip.compress(content) if packed else content)
    data = load(file)
    assert data.test == EXPECTED
    assert (data.train, data.selection, data.unanswerable) == ([], [], 0)
    assert (data.left_out, data.notes) == ({}, ())
    assert data.sha256 == load(written(tmp_path, "x.jsonl", json_lines(RECORDS))).sha256


def test_plain_answers_in_a_csv_stay_as_they_are_written(tmp_path: Path) -> None:
    answers = ["1984", "007", "NA", "null", "1,000.0", "[sic]", "true", 'the "x"']
    records = [record(n, id=str(n), answers=answer) for n, answer in enumerate(answers)]
    data = load(written(tmp_path, "a.csv", csv_plain(records)))
    assert [q.answers for q in data.test] == [(answer,) for answer in answers]
    assert [q.id for q in data.test] == [str(n) for n in range(len(answers))]


def test_numeric_ids_absent_titles_and_plain_lists_are_fine(tmp_path: Path) -> None:
    row = {"context": "c", "question": "q", "answers": ["x", "y"], "more": [1]}
    rows = [{**row, "id": 7}, {**row, "id": 8.0}]  # pandas makes 8.0 of 8 where another id is missing
    expected = [Question(number, "", "c", "q", ("x", "y")) for number in ("7", "8")]
    assert load(written(tmp_path, "a.jsonl", json_lines(rows))).test == expected


def test_a_rewritten_file_is_read_anew(tmp_path: Path) -> None:
    for number in (1, 2):
        file = written(tmp_path, "rows.parquet", parquet([record(number)]))
        assert [q.id for q in load(file).test] == [f"q{number}"]


# --- SQuAD v2 -----------------------------------------------------------------------------------------------

IMPOSSIBLE, POSSIBLE = {"is_impossible": True}, {"is_impossible": False}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("version.json", nested([record(1), record(2, answers=NO_ANSWER), record(3, **IMPOSSIBLE)], "v2.0")),
        ("field.json", nested([record(1, **POSSIBLE), record(2, **IMPOSSIBLE), record(3, **IMPOSSIBLE)])),
        (
            "flat.jsonl",
            json_lines([record(1, **POSSIBLE), record(2, answers=NO_ANSWER), record(3, **IMPOSSIBLE)]),
        ),
        ("squad_v2-dev.parquet", parquet([record(1), *(record(n, answers=NO_ANSWER) for n in (2, 3))])),
        ("cells.csv", csv_plain([record(n, answers="x" * (n == 1), is_impossible=n > 1) for n in (1, 2, 3)])),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unanswerable_questions_are_left_out_and_counted(tmp_path: Path, name: str, content: bytes) -> None:
    data = load(written(tmp_path, name, content))
    assert [q.id for q in data.test] == ["q1"]
    assert data.unanswerable == 2


# --- Bad files ----------------------------------------------------------------------------------------------


def without(column: str) -> list[Record]:
    return [{key: value for key, value in r.items() if key != column} for r in RECORDS]


BAD_FILES: list[tuple[str, bytes, str]] = [
    ("empty.json", b"", "is empty"),
    ("blank.jsonl", b" \n\n", "is empty"),
    ("empty.parquet", b"", "is empty"),
    ("no-rows.parquet", parquet([record(1)][:0]), "no question"),
    ("no-rows.csv", b"id,title,context,question,answers\r\n", "no question"),
    ("no-rows.json", b"[]", "no question"),
    ("cut.json", nested(RECORDS)[:-9], "Expecting"),
    ("cut.jsonl", json_lines(RECORDS)[:-9], "line 12"),
    ("cut.parquet", parquet(RECORDS)[:-9], "Parquet"),
    ("text.parquet", b"PAR1 no, this is a text", "Parquet"),
    ("cut.csv", csv_json(RECORDS)[:-9], "unexpected end of data"),
    ("shifted.csv", b"id,context,question,answers\n1,c, with a comma,q,a\n", "record 1 has more fields"),
    ("short.csv", b"id,context,question,answers\n1,c\n", "1 with no question (question '1')"),
    ("latin.jsonl", '{"id": "é"}'.encode("latin-1"), "utf-8"),
    ("deep.json", b"[" * 100_000, "nested more than 50 levels deep"),
    ("deep.jsonl", b'{"id": ' + b"[" * 60 + b"]" * 60 + b"}", "nested more than 50 levels deep"),
    ("bomb.json.gz", gzip.compress(b" " * 100_000_000), "more than 100 times as large"),
    ("bomb.parquet", parquet_bomb(use_dictionary=False), "more than 100 times as large"),
    ("shared.parquet", parquet_bomb(use_dictionary=True), "more than 100 times as large"),
    ("long-id.json", nested([record(1, question=" ", id="x" * 5_000)]), "(question 'xxxx"),
    ("number.json", b"12", "no list of records"),
    ("mapping.json", b'{"q1": "answer"}', "no list of records"),
    ("numbers.json", b"[1, 2]", "no list of records"),
    ("numbers.jsonl", b"1\n2\n", "line 1 is not a JSON object"),
    ("paragraphs.json", b'{"data": [{"paragraphs": [{"qas": []}]}]}', "no question"),
    ("qas.json", b'{"data": [{"paragraphs": {"qas": 1}}]}', "data[].paragraphs[].qas[]"),
    ("no-context.jsonl", json_lines(without("context")), "'q0', question 'q1', question 'q2' and 9 more"),
    ("no-question.parquet", parquet(without("question")), "with no question (question 'q0'"),
    ("no-answers.json", nested(without("answers")), "12 with no answer"),
    ("no-answer.json", nested([record(99, answers=NO_ANSWER)]), "with no answer (question 'q99')"),
    ("no-answer.jsonl", json_lines([record(99, answers=NO_ANSWER)]), "unanswerable questions: 1"),
    ("blank-answer.csv", csv_plain([record(99, answers="")]), "with no answer"),
    ("odd-alias.jsonl", json_lines([record(9, answers={"value": "x", "aliases": [{}]})]), "an answer that"),
    ("all-impossible.json", nested([record(1, is_impossible=True)]), "unanswerable questions: 1"),
    ("data.txt", json_lines(RECORDS), "the endings .json, .jsonl, .ndjson, .csv, .tsv, .parquet, or one"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "told"), BAD_FILES, ids=[name for name, _, _ in BAD_FILES])
def test_a_bad_file_is_named_with_what_is_wrong_and_a_remedy(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    file = written(tmp_path, name, content)
    with pytest.raises(UsageError) as caught:
        load(file)
    assert told in caught.value.problem
    assert str(file) in caught.value.problem
    assert caught.value.remedy
    assert "\n" not in caught.value.problem + caught.value.remedy


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    written(tmp_path, "dev-v1.1.json", nested(RECORDS))
    for name, told in [
        ("tiny-sqad", "Did you mean 'tiny-squad'? Choices: squad, tiny-squad."),
        (f"{tmp_path}/dev-v1.json", "Did you mean 'dev-v1.1.json'?"),
        (f"{tmp_path}/nothing.csv", "A file is SQuAD"),
        (f"{tmp_path}/absent/x.json", "A file is SQuAD"),
        (f"{tmp_path}/nothing/at/all", "A file is SQuAD"),
        ("", "Choices: squad, tiny-squad."),
        ("nul\0byte", "Choices: squad, tiny-squad."),
        ("x" * 5000, "Or pass a file: SQuAD"),
    ]:
        with pytest.raises(UsageError) as caught:
            load(name)
        assert told in caught.value.remedy, name


# --- Splits -------------------------------------------------------------------------------------------------


def assert_disjoint(data: QAData) -> None:
    splits = (data.train, data.selection, data.test)
    for what in ("id", "context"):
        kinds = [{getattr(q, what) for q in split} for split in splits]
        assert sum(map(len, kinds)) == len(set.union(*kinds)), f"two splits share a {what}"


def test_passages_are_dealt_out_by_seed_and_text(tmp_path: Path) -> None:
    rows = [record(n, passage=n // 3) for n in range(300)]
    file = written(tmp_path, "rows.jsonl", json_lines(rows))
    data = load(file, splits=True)
    assert_disjoint(data)
    passages = [len({q.context for q in split}) for split in (data.train, data.selection, data.test)]
    assert passages == [80, 10, 10]
    assert load(file, splits=True) == data
    other = load(file, splits=True, split_seed=1)
    assert other.test != data.test
    assert (other.sha256 != data.sha256, other.content) == (True, data.content)

    shuffled = random.Random(3).sample(rows, len(rows))
    for row in shuffled[::2]:
        row["context"] = row["context"].replace(" ", "  ")
    again = load(written(tmp_path, "shuffled.jsonl", json_lines(shuffled)), splits=True)
    assert {q.id for q in again.test} == {q.id for q in data.test}, "order or stray spaces moved a passage"

    few = load(file, splits=True, train=100, selection=9)
    assert (len(few.train), len(few.selection), few.test) == (100, 9, data.test)
    assert (len({q.context for q in few.train}), len({q.context for q in few.selection})) == (80, 9)


def test_three_passages_are_the_least_to_train_on(tmp_path: Path) -> None:
    data = load(written(tmp_path, "three.jsonl", json_lines(RECORDS[:9])), splits=True)
    assert_disjoint(data)
    assert [len(data.train), len(data.selection), len(data.test)] == [3, 3, 3]
    file = written(tmp_path, "two.jsonl", json_lines(RECORDS[:6]))
    assert len(load(file).test) == 6
    with pytest.raises(UsageError, match=r"Too few passages \(2\)"):
        load(file, splits=True)


def test_tiny_squad() -> None:
    data = load("tiny-squad", splits=True, train=1000, selection=100)
    assert_disjoint(data)
    assert (len(data.train), len(data.selection)) == (1000, 100)
    assert len(data.test) >= 1000
    other = load("tiny-squad", splits=True, split_seed=5, train=1000, selection=100)
    assert other == data, "a named data set is the same for all"
    only = load("tiny-squad")
    assert (only.train, only.selection, only.test, only.sha256) == ([], [], data.test, data.sha256)
    assert all(answer in q.context for q in data.test for answer in q.answers)


def test_squad_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo: str, *, repo_type: str, allow_patterns: list[str], **_: object) -> str:
        assert (repo, repo_type) == ("rajpurkar/squad", "dataset")
        [pattern] = allow_patterns
        folder = tmp_path / "plain_text"
        folder.mkdir(exist_ok=True)
        first = 100 if "validation" in pattern else 0
        rows = [record(first + n, passage=first + n // 3) for n in range(60)]
        written(folder, f"{pattern.split('/')[1].split('-')[0]}-00000-of-00001.parquet", parquet(rows))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    data = load("squad", splits=True)
    assert_disjoint(data)
    assert [len(data.train), len(data.selection), len(data.test)] == [54, 6, 60]
    assert load("squad", splits=True, split_seed=1).test == data.test


@pytest.mark.parametrize("answer", ["nothing cached", "unreachable"])
def test_an_unreachable_hub_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    def download(*args: object, **options: object) -> str:
        if answer == "unreachable":
            raise ConnectionError("Name or service not known\nand a lot more")
        return str(tmp_path)  # offline, the client answers with whatever part of the repository it has

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UsageError, match="rajpurkar/squad") as caught:
        load("squad")
    assert "download" in caught.value.remedy
    assert "\n" not in caught.value.problem


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 45))
def test_spread_takes_evenly_from_all_passages(passages: list[int], limit: int) -> None:
    questions = [Question(str(n), "", str(passage), "", ("a",)) for n, passage in enumerate(passages)]
    taken = spread(questions, limit)
    assert len(taken) == min(limit, len(questions))
    assert [int(q.id) for q in taken] == sorted({int(q.id) for q in taken}), "not in the old order"
    counts, available = Counter(q.context for q in taken), Counter(q.context for q in questions)
    for passage, count in available.items():
        assert counts[passage] in (count, max(counts.values()), max(counts.values()) - 1)
        of_passage = [q for q in questions if q.context == passage]
        assert [q for q in taken if q.context == passage] == of_passage[: counts[passage]]
    assert spread(questions, None) == questions


def test_spread_does_not_stay_at_the_beginning() -> None:
    questions = [Question(str(n), "", str(n), "", ("a",)) for n in range(100)]
    assert [q.id for q in spread(questions, 5)] == ["0", "20", "40", "60", "80"]

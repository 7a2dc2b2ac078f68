"""Files of questions in every format, with something wrong in them, and the commands that read them."""

import csv
import gzip
import io
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from faults import mutations
from faults.warm import OUT, Given, settings
from stage1_datasets.tiny_squad.generator import tiny_squad


@cache
def tiny_rows() -> list[dict[str, Any]]:
    return [dict(row) for row in tiny_squad("test", 3)]


def _squad(rows: list[dict[str, Any]]) -> dict[str, Any]:
    paragraphs: list[dict[str, Any]] = []
    for row in rows:
        answers = [{"text": text, "answer_start": 0} for text in row["answers"]["text"]]
        qa = {"id": row["id"], "question": row["question"], "answers": answers, "is_impossible": False}
        paragraphs.append({"context": row["context"], "qas": [qa]})
    return {"version": "1.1", "data": [{"title": "Oslo", "paragraphs": paragraphs}]}


def _mrqa(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"context": r["context"], "qas": [{"qid": r["id"], "question": r["question"], "answers": ["x", "y"]}]}
        for r in rows
    ]


def _hotpot(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"_id": r["id"], "question": r["question"], "answer": "x", "context": [["Oslo", ["One. ", "Two."]]]}
        for r in rows
    ]


def _trivia(rows: list[dict[str, Any]]) -> dict[str, Any]:
    answer, found = {"Value": "x", "Aliases": ["x", "y"]}, [{"Description": "A place.", "Filename": "a.txt"}]
    return {
        "Data": [
            {"QuestionId": r["id"], "Question": r["question"], "Answer": answer, "SearchResults": found}
            for r in rows
        ]
    }


def json_lines(rows: Any) -> bytes:
    return b"".join(mutations.as_json(row) + b"\n" for row in (rows if isinstance(rows, list) else [rows]))


def _table(rows: Any, delimiter: str) -> bytes:
    text = io.StringIO()
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    writer = csv.DictWriter(
        text, sorted({str(key) for row in rows for key in row}) or ["id"], delimiter=delimiter
    )
    writer.writeheader()
    writer.writerows({str(key): value for key, value in row.items()} for row in rows)
    return text.getvalue().encode(errors="surrogatepass")


def _parquet(rows: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        table = pa.Table.from_pylist(rows)
    except (pa.ArrowException, TypeError, AttributeError, ValueError, OverflowError):  # no table any more
        table = pa.Table.from_pylist(tiny_rows())
    pq.write_table(table, buffer, compression=None)
    return buffer.getvalue()


FORMATS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], bytes]]] = {
    "squad.json": (_squad, mutations.as_json),
    "squad_v2.json": (_squad, mutations.as_json),
    "hotpot.json": (_hotpot, mutations.as_json),
    "trivia.json": (_trivia, mutations.as_json),
    "rows.json": (list, mutations.as_json),
    "rows.jsonl": (list, json_lines),
    "mrqa.ndjson": (_mrqa, json_lines),
    "rows.csv": (list, lambda rows: _table(rows, ",")),
    "rows.tsv": (list, lambda rows: _table(rows, "\t")),
    "rows.parquet": (list, _parquet),
}


def data(random: Random, place: Path, made: Path) -> Given:
    name = random.choice(list(FORMATS))
    arrange, write = FORMATS[name]
    whole = arrange(tiny_rows())
    mutate = random.choice(("bytes", "tree", "texts"))
    if mutate == "bytes":
        content = mutations.content(write(whole), random)
    else:
        content = write(mutations.tree(whole, random, texts_alone=mutate == "texts"))
    if random.random() < 0.2:
        name, content = f"{name}.gz", gzip.compress(content)
        content = mutations.content(content, random) if random.random() < 0.5 else content
    (place / name).write_bytes(content)
    answers = {row["id"]: row["answers"]["text"][0] for row in tiny_rows()}
    (place / "answers.json").write_bytes(mutations.as_json(answers))
    match random.randrange(12):
        case 0:
            return ["train", "--data", name, "--output", OUT, "--no-eval", *settings("train.steps=0")], ()
        case 1:
            return ["eval", shutil.copytree(made / "run", place / "run").name, "--data", name], ("run",)
        case 2:
            (place / "answers.json").write_bytes(mutations.content(mutations.as_json(answers), random))
        case 3:
            changed = mutations.tree(answers, random)
            (place / "answers.jsonl").write_bytes(
                json_lines([{"id": key, "prediction": value} for key, value in changed.items()])
                if isinstance(changed, dict)
                else b""
            )
            return ["score", name, "answers.jsonl"], ()
    return ["score", name, "answers.json", *random.choice(([], ["--json"], ["--strict"]))], ()

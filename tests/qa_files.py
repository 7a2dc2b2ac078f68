"""Files of questions and answers in every format, and what is read from them."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from stage1.config import DataConfig
from stage1.data.datasets import QAData, load_qa
from stage1.data.records import Question

Record = dict[str, Any]


def record(number: int, passage: int | None = None, **changes: Any) -> Record:
    """A flat record about a passage of its own, unless another is named."""
    about = number if passage is None else passage
    return {
        "id": f"q{number}",
        "title": "T",
        "context": f"Passage {about}, with a comma and\na line — “quoted” 東京 🙂.",
        "question": f"What is {number}?",
        "answers": {"text": [f"answer {number}", "1984"], "answer_start": [0, 3]},
    } | changes


RECORDS = [record(number, passage=number // 3) for number in range(12)]
EXPECTED = [
    Question(r["id"], r["title"], r["context"], r["question"], tuple(r["answers"]["text"])) for r in RECORDS
]

NO_ANSWER: Record = {"text": [], "answer_start": []}


def nested(records: list[Record], version: object = "1.1") -> bytes:
    """SQuAD's own form, each question in a paragraph of its own."""
    articles = []
    for r in records:
        qa = {key: value for key, value in r.items() if key not in ("title", "context", "answers")}
        if "answers" in r:
            pairs = zip(r["answers"]["text"], r["answers"]["answer_start"], strict=True)
            qa["answers"] = [{"text": text, "answer_start": start} for text, start in pairs]
        articles.append({"title": r["title"], "paragraphs": [{"context": r["context"], "qas": [qa]}]})
    return json.dumps({"version": version, "data": articles}).encode()


def csv_json(records: list[Record], delimiter: str = ",") -> bytes:
    """A CSV whose answers are JSON."""
    return csv_plain([{**r, "answers": json.dumps(r["answers"])} for r in records], delimiter)


def csv_plain(records: list[Record], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def written(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def load(name: str | Path, *, splits: bool = False, **options: Any) -> QAData:
    """The data set, all of it in the test split unless it is to have `splits`."""
    config = DataConfig.model_validate({"name": str(name), **options})
    return load_qa(config, everything_is_test=not splits)

"""Questions and answers in files: SQuAD's nested JSON, or flat records as JSON, JSONL, Parquet or CSV."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from stage1.errors import UsageError, suggest

DATA_SETS = ("tiny-squad", "squad")
COLUMNS = ("id", "context", "question", "answers")  # `title` may be missing
FILES = (
    "SQuAD v1.1 or v2.0 JSON, or JSONL, Parquet or CSV with the columns "
    "id, title, context, question, answers."
)
ACCEPTED = f"Data is tiny-squad, squad, or a file: {FILES}"

Row = dict[str, Any]


class Question(NamedTuple):
    """A question about a passage, with every answer that counts as right."""

    id: str
    title: str
    context: str
    question: str
    answers: tuple[str, ...]


def read_questions(path: Path) -> tuple[list[Question], int]:
    """The answerable questions in a file, and how many it has that are not.

    Only SQuAD v2 data has unanswerable questions: a file that says so by its version, by a field
    `is_impossible`, or by a name like `squad_v2` or `dev-v2.0`, for the Hub's copy has neither of the two.
    Elsewhere a question without an answer is an error.

    Raises:
        UsageError: the file is missing, empty, malformed, no SQuAD data, or one of its records is bad.
    """
    rows = _read_rows(path)
    named_v2 = re.search(r"squad[-_]?v2|v2\.0", f"{path.parent.name}/{path.name}".lower()) is not None
    v2 = named_v2 or any("is_impossible" in row for row in rows)
    questions: dict[str, Question] = {}
    unanswerable = 0
    for number, row in enumerate(rows, 1):
        question = _question(row, number, path)
        impossible = str(row.get("is_impossible")).lower() in ("true", "1")
        if impossible or (v2 and not question.answers):
            unanswerable += 1
        elif not question.answers:
            raise UsageError(
                f"Question {question.id!r} in {path} has no answer.",
                "Remove it, or mark it as SQuAD v2.0 does if it cannot be answered: is_impossible: true.",
            )
        elif question.id in questions:
            raise UsageError(
                f"{path} has more than one question with the id {question.id!r}.", "Make ids unique."
            )
        else:
            questions[question.id] = question
    if not questions:
        counted = f": all {unanswerable} are unanswerable" if unanswerable else ""
        raise UsageError(f"{path} holds no question to answer{counted}.", ACCEPTED)
    return list(questions.values()), unanswerable


def _read_rows(path: Path) -> list[Row]:
    """The records of a file in any accepted format, as they are."""
    readers: dict[str, Callable[[bytes], list[Row]]] = {
        ".json": _json_rows,
        ".jsonl": _jsonl_rows,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
    }
    try:
        content = path.read_bytes()
    except (FileNotFoundError, ValueError):  # ValueError: a path that no file can have
        raise _missing(path, is_file=path.suffix.lower() in readers) from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder.", ACCEPTED) from None
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.", ACCEPTED) from None
    if path.suffix.lower() not in readers:
        raise UsageError(f"{path} has none of the endings {', '.join(readers)}.", ACCEPTED)
    if not content.strip():
        raise UsageError(f"{path} is empty.", ACCEPTED)
    try:
        return readers[path.suffix.lower()](content)
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply.", ACCEPTED) from None
    except (ValueError, csv.Error) as error:  # also bad UTF-8 and bad JSON
        raise UsageError(f"{path} is no SQuAD data: {str(error).rstrip('.')}.", ACCEPTED) from None


def _missing(path: Path, *, is_file: bool) -> UsageError:
    if not is_file:
        remedy = f"{suggest(str(path), DATA_SETS)} Or pass a file: {FILES}"
        return UsageError(f"There is no data set and no file {str(path)!r}.", remedy)
    near = get_close_matches(path.name, [neighbour.name for neighbour in path.parent.glob("*")], n=1)
    return UsageError(f"There is no file {path}.", f"Did you mean {near[0]!r}?" if near else ACCEPTED)


def _json_rows(content: bytes) -> list[Row]:
    """Official nested JSON, flat records (a list, or one under `data`), or JSON Lines under another name."""
    try:
        tree = json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # `datasets` and pandas write JSON Lines to files called .json
            return _jsonl_rows(content)
        raise
    if isinstance(tree, list):
        tree = {"data": tree}
    entries = tree.get("data") if isinstance(tree, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("it holds no list of records")
    rows = list(_nested_rows(entries)) if any("paragraphs" in entry for entry in entries) else entries
    if str(tree.get("version")).removeprefix("v").startswith("2"):
        rows = [{"is_impossible": False, **row} for row in rows]
    return rows


def _nested_rows(articles: list[Row]) -> Iterator[Row]:
    """The questions of `articles[].paragraphs[].qas[]`, each with its title and context."""
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                outer = {"title": article.get("title"), "context": paragraph["context"]}
                yield from ({**outer, **qa} for qa in paragraph["qas"])
    except (KeyError, TypeError, AttributeError):
        raise ValueError("it does not follow data[].paragraphs[].qas[]") from None


def _jsonl_rows(content: bytes) -> list[Row]:
    rows = []
    for number, line in enumerate(content.decode("utf-8-sig").split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(rows[-1], dict):
                raise ValueError(f"line {number} is not a JSON object")
    return rows


def _csv_rows(content: bytes) -> list[Row]:
    """Records of a CSV file; `answers` may be JSON or one plain answer.

    The csv module leaves every cell a string, where a reader that guesses types makes a number of the answer
    "1984" and nothing of the answer "NA".
    """
    reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    rows: list[Row] = list(reader)
    for number, row in enumerate(rows, 1):
        if None in row:
            raise ValueError(f"record {number} has more fields than the header; is a quote missing?")
        if re.match(r"""\{|\[\s*["'{]""", row.get("answers") or ""):
            try:
                row["answers"] = json.loads(row["answers"])
            except json.JSONDecodeError as error:
                raise ValueError(f"the answers of record {number} are not JSON: {error}") from None
    return rows


def _parquet_rows(content: bytes) -> list[Row]:
    # The reader beneath `datasets`, without that library's cache, which can answer with an older file.
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        rows: list[Row] = pq.read_table(pa.BufferReader(content)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error).split("\n")[0]) from None
    return rows


def _question(row: Row, number: int, path: Path) -> Question:
    """One record, checked; `answers` stays empty where the record has none."""
    name = f"Question {row['id']!r}" if row.get("id") else f"Record {number}"
    lacking = [column for column in COLUMNS if column not in row]
    if lacking == ["answers"] and str(row.get("is_impossible")).lower() == "true":
        lacking = []
    if lacking:
        has = ", ".join(map(repr, row)) or "nothing"
        raise UsageError(f"{name} in {path} lacks {', '.join(lacking)}; it has {has}.", ACCEPTED)
    fields = {column: row[column] for column in ("id", "context", "question")}
    fields["id"] = str(row["id"]) if isinstance(row["id"], int) else row["id"]
    for column, value in fields.items():
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"{name} in {path}: {column} is not a text.", ACCEPTED)
    answers = _answers(row.get("answers"))
    if not all(isinstance(answer, str) for answer in answers):
        raise UsageError(f"{name} in {path} has an answer that is not a text.", ACCEPTED)
    question = Question(**fields, title=str(row.get("title") or ""), answers=answers)
    try:
        "".join((*fields.values(), *answers)).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name} in {path} holds half of a surrogate pair.", "Repair its text.") from None
    return question


def _answers(value: Any) -> tuple[Any, ...]:
    """What an `answers` field holds: `{"text": […]}`, `[{"text": …}, …]`, a list of texts, or one text."""
    texts = value.get("text") if isinstance(value, dict) else value
    items = texts if isinstance(texts, list) else [texts]
    items = [item.get("text") if isinstance(item, dict) else item for item in items]
    return tuple(item for item in items if item is not None and str(item).strip())

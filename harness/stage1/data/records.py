"""Records checked and counted: rows of any file as questions, and what cannot be asked, with the reason."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from stage1.config import FieldNames
from stage1.data.answers import gold_answers
from stage1.data.formats import FORMATS, Row
from stage1.data.layouts import named
from stage1.errors import UsageError
from stage1.text import one_line

SHOWN = 3
"""Records that a note names for each reason."""

LONGEST = 100
"""Characters of a record's name in a note."""


class Question(NamedTuple):
    """A question about a passage, with every answer that counts as right."""

    id: str
    title: str
    context: str
    question: str
    answers: tuple[str, ...]  # at least one; a text may be empty, which only an empty prediction matches

    @property
    def gold(self) -> str:
        """The answer to show and to train on: the first that is not empty, if there is one."""
        return next((answer for answer in self.answers if answer.strip()), self.answers[0])


class Records(NamedTuple):
    """What a source holds."""

    questions: list[Question]
    unanswerable: list[Question]  # SQuAD v2's, without answers
    left_out: dict[str, list[str]]  # reason → the records' names
    made_ids: int  # questions whose id was made from their content

    def notes(self, source: str) -> Iterator[str]:
        """What a user must know of the reading, a line each."""
        if self.made_ids:
            yield f"{self.made_ids} questions of {source} have no id; theirs are made from their content."
        if self.left_out:
            yield f"{source}: {self.summary()}."

    def summary(self) -> str:
        """'3 records left out: 2 without a question (record 7, record 9); 1 …'."""
        parts = []
        for reason, names in self.left_out.items():
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            parts.append(f"{len(names)} with {reason} ({', '.join(names[:SHOWN])}{more})")
        total = sum(map(len, self.left_out.values()))
        return f"{total} record{'s' if total > 1 else ''} left out: {'; '.join(parts)}"


def check_rows(
    rows: Iterable[Row],
    source: str,
    *,
    v2: bool = False,
    fields: FieldNames | None = None,
    strict: bool = False,
    repeated: bool = False,
) -> Records:
    """Flat rows as questions.

    SQuAD v2 data has unanswerable questions. Elsewhere a question without an answer is a bad record, as it is
    to the official script of v1.1, unless it says that it has none: `{"text": []}`.

    Args:
        rows: see `flat_rows`.
        source: names them in messages.
        v2: they are of SQuAD v2; so they are, too, where one has a field `is_impossible`.
        fields: what they call their columns, where it is none of the known names.
        strict: refuse all for a bad record instead of leaving the record out.
        repeated: keep questions whose id an earlier one has.

    Raises:
        UsageError: none can be asked; with `strict`, one cannot.
    """
    rows = list(rows)
    fields = fields or FieldNames()
    v2 = v2 or any(row.get("is_impossible") is not None for row in rows)
    records = Records([], [], {}, 0)
    seen: set[str] = set()
    made = 0
    for number, row in enumerate(rows, 1):
        try:
            impossible = str(row.get("is_impossible")).lower() in ("true", "1", "1.0")
            question, has_id = _question(row, fields, may_lack_answers=impossible or v2)
            if question.id in seen and not repeated:
                raise ValueError("the id of an earlier one")
        except ValueError as error:
            records.left_out.setdefault(str(error), []).append(_name(row, number, fields))
            continue
        seen.add(question.id)
        made += not has_id
        if impossible or not question.answers:
            records.unanswerable.append(question._replace(answers=()))
        else:
            records.questions.append(question)
    records = records._replace(made_ids=made)
    if strict and records.left_out:
        raise UsageError(f"{source}: {records.summary()}.", "Correct them, or go without --strict.")
    if not records.questions:
        raise _nothing(source, records, rows)
    return records


def _nothing(source: str, records: Records, rows: list[Row]) -> UsageError:
    why = []
    if records.unanswerable:
        why.append(f"unanswerable questions: {len(records.unanswerable)}")
    if records.left_out:
        why.append(f"{records.summary()}; the first has {', '.join(map(repr, rows[0])) or 'nothing'}")
    remedy = f"A file is {FORMATS} Columns of another name: --set data.fields.question=NAME."
    return UsageError(f"{source} holds no question to answer{': ' if why else ''}{'; '.join(why)}.", remedy)


def _name(row: Row, number: int, fields: FieldNames) -> str:
    """What a message calls a record."""
    id_ = named(row, "id", fields.id)
    return (
        one_line(f"question {id_!r}", LONGEST) if isinstance(id_, str) and id_.strip() else f"record {number}"
    )


def _question(row: Row, fields: FieldNames, *, may_lack_answers: bool) -> tuple[Question, bool]:
    """One row, checked, and whether its id is its own; `answers` stays empty where it has none.

    Raises:
        ValueError: it cannot be asked; the message goes on after "record with".
    """
    context = _text(row, "context", fields.context)
    question = _text(row, "question", fields.question)
    title = str(named(row, "title", fields.title) or "")
    answers = gold_answers(named(row, "answers", fields.answer))
    if answers is None and not may_lack_answers:
        raise ValueError("no answer")
    own_id = _id(named(row, "id", fields.id))
    found = Question(own_id or "", title, context, question, answers or ())
    try:
        "".join((*found[:4], *found.answers)).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair") from None
    if own_id is None:  # one that is the same wherever and whenever the same question is read
        content = json.dumps(found, ensure_ascii=False)
        found = found._replace(id=hashlib.sha256(content.encode()).hexdigest()[:16])
    return found, own_id is not None


def _text(row: Row, column: str, field: str | None) -> str:
    value = named(row, column, field)
    if value is None:
        raise ValueError(f"no {column}")
    if not isinstance(value, str):
        raise ValueError(f"a {column} that is not a text")
    if not value.strip():
        raise ValueError(f"a blank {column}")
    return value


def _id(value: Any) -> str | None:
    """An id as text; None where there is none. pandas makes 7.0 of 7 where another id is missing."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value.strip() else None

"""From what data sets call a record to one flat row for each question: id, title, context, question, answers.

SQuAD's `data[].paragraphs[].qas[]`, the lines of MRQA 2019, HotpotQA and TriviaQA as their authors and as the
Hub publish them. A row that is none of these is passed on as it is.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stage1.data.formats import Row

NAMES = {
    "id": ("_id", "qid", "question_id", "QuestionId"),
    "title": (),
    "context": ("passage",),
    "question": ("Question",),
    "answers": ("answer", "Answer"),
}
"""Other names that published files have for a column; the column's own comes first."""


def flat_rows(row: Row, folder: Path | None = None) -> Iterator[Row]:
    """The questions of a row, each with its passage.

    Args:
        row: as a file or the Hub has it.
        folder: the file's, beside which TriviaQA's documents may lie (`../evidence`).

    Raises:
        ValueError: it begins as a nested format does, and goes on as none.
    """
    if "paragraphs" in row:
        yield from _squad(row)
    elif "qas" in row:
        yield from _mrqa(row)
    elif row.keys() == {"header"}:  # the first line of an MRQA file
        return
    elif "EntityPages" in row or "SearchResults" in row:
        yield {**row, "context": _evidence(row, folder)}
    elif "entity_pages" in row or "search_results" in row:
        yield {**row, "context": _documents(row)}
    elif isinstance(row.get("context"), list | dict):
        yield {**row, "context": _paragraphs(row["context"])}
    else:
        yield row


def named(row: Row, column: str, field: str | None) -> Any:
    """What a flat row has for a column: under `field`, a dotted path, or else under a known name; or None."""
    if field is None:
        return next((row[name] for name in (column, *NAMES[column]) if name in row), None)
    if field in row:
        return row[field]
    value: Any = row
    for part in field.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _squad(article: Row) -> Iterator[Row]:
    try:
        for paragraph in article["paragraphs"]:
            outer = {"title": article.get("title"), "context": paragraph.get("context")}
            yield from ({**outer, **qa} for qa in paragraph["qas"])
    except (KeyError, TypeError, AttributeError):
        raise ValueError("it does not follow data[].paragraphs[].qas[]") from None


def _mrqa(passage: Row) -> Iterator[Row]:
    """`answers` are what MRQA's own script compares with; where a line has none, what it found instead."""
    try:
        for qa in passage["qas"]:
            id_ = qa.get("qid", qa.get("id"))
            answers = qa.get("answers") or qa.get("detected_answers")
            yield {**qa, "context": passage.get("context"), "id": id_, "answers": answers}
    except (TypeError, AttributeError):
        raise ValueError("its qas[] are not a list of questions") from None


def _paragraphs(context: Any) -> str | None:
    """HotpotQA's passage: `[[title, [sentence, …]], …]`, or the Hub's `{title: […], sentences: [[…], …]}`."""
    try:
        if isinstance(context, Mapping):
            pairs = list(zip(context["title"], context["sentences"], strict=True))
        else:
            pairs = [(title, sentences) for title, sentences in context]
        return "\n".join(f"{title}: {''.join(sentences).strip()}" for title, sentences in pairs) or None
    except (KeyError, TypeError, ValueError):
        return None


def _evidence(row: Row, folder: Path | None) -> str | None:
    """TriviaQA's passage: its documents, where they lie beside the file, or else the search's excerpts."""
    pages = [("wikipedia", page) for page in row.get("EntityPages") or ()]
    pages += [("web", page) for page in row.get("SearchResults") or ()]
    found = []
    for kind, page in pages:
        text = _document(folder, kind, page.get("Filename")) if isinstance(page, Mapping) else None
        if text:
            found.append(text)
    if not found:
        found = [
            page["Description"] for _, page in pages if isinstance(page, Mapping) and page.get("Description")
        ]
    return "\n".join(map(str, found)) or None


def _document(folder: Path | None, kind: str, name: Any) -> str | None:
    """A document of the evidence; a name never leads out of its folder."""
    if folder is None or not isinstance(name, str):
        return None
    root = (folder.parent / "evidence" / kind).resolve()
    try:
        path = (root / name).resolve()
        return path.read_text(encoding="utf-8").strip() if path.is_relative_to(root) else None
    except (OSError, ValueError):
        return None


def _documents(row: Row) -> str | None:
    """TriviaQA's passage on the Hub, where lists lie side by side."""
    searched = ("search_results", "search_context"), ("search_results", "description")
    for group, key in (("entity_pages", "wiki_context"), *searched):
        columns = row.get(group)
        texts = columns.get(key) if isinstance(columns, Mapping) else None
        if texts and any(texts):
            return "\n".join(str(text) for text in texts if text)
    return None

"""Answers of the LLM as they come, kept by all that decides them: an interrupted evaluation goes on where it
stopped, and what no bottleneck changes is asked once.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from stage1.files import append, read_bytes
from stage1.progress import Progress


class Journal:
    """Requests and their answers, a line each, written as soon as there is an answer.

    The file is found by content: another model, bottleneck or protocol is another file. A line that a kill
    cut short, or that was edited, counts as none.

    Args:
        folder: the cache; None keeps nothing.
        decides: everything beside the request that decides an answer, as JSON.
        progress: told when the folder cannot be written, which is no reason to stop.
    """

    def __init__(self, folder: Path | None, decides: Any, progress: Progress) -> None:
        self.path = folder / "answers" / f"{sha256(decides)}.jsonl" if folder else None
        self.progress = progress
        self._known: dict[str, Any] = {}
        self._torn = False
        if self.path is not None:
            self._read(self.path)

    def _read(self, path: Path) -> None:
        try:
            text = read_bytes(path).decode(errors="replace")
        except OSError:
            return
        self._torn = bool(text) and not text.endswith("\n")
        for line in text.split("\n"):
            try:
                record = json.loads(line)
                if record["sha256"] == sha256([record["request"], record["answer"]]):
                    self._known[record["request"]] = record["answer"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue

    def get(self, request: Any) -> Any:
        """The answer to `request` (JSON), or None."""
        return self._known.get(sha256(request))

    def add(self, request: Any, answer: Any) -> None:
        """Keep `answer` (JSON, not None), unless it is kept already."""
        name = sha256(request)
        if self.path is None or name in self._known:
            return
        self._known[name] = answer
        record = {"request": name, "answer": answer, "sha256": sha256([name, answer])}
        # One write at the file's end: two programs that ask the same do not cut into each other's lines.
        line = "\n" * self._torn + json.dumps(record, ensure_ascii=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append(self.path, line.encode(errors="backslashreplace"))
            self._torn = False
        except OSError as error:
            self.progress.note(f"Answers are not cached: {error.strerror or error}.")
            self.path = None

    def forget(self) -> None:
        """Remove the file: what it was kept for is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def sha256(value: Any) -> str:
    """The hash of `value` as JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()

"""Answers that no bottleneck changes, kept under the user's cache folder by all that decides them."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stage1.errors import Stage1Error
from stage1.files import write_atomic
from stage1.progress import Progress


def default_cache() -> Path:
    """The user's cache folder: `$STAGE1_CACHE`, else `stage1` under `$XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("STAGE1_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stage1"


class Baselines:
    """Generated answers by content: another model, prompt or setting is another file.

    Args:
        folder: where they are kept; None keeps nothing.
        common: what the answers of every row depend on, as JSON.
        progress: told when the folder cannot be written, which is no reason to stop.
    """

    def __init__(self, folder: Path | None, common: dict[str, Any], progress: Progress) -> None:
        self.folder = folder / "baselines" if folder else None
        self.common, self.progress = common, progress

    def _path(self, own: Any) -> Path | None:
        return self.folder / f"{_sha256([self.common, own])}.json" if self.folder else None

    def read(self, own: Any, ids: Sequence[str]) -> list[str] | None:
        """The answers to the questions `ids` of the row that `own` (JSON) describes, if they are there.

        A file that is damaged, edited or about other questions counts as none.
        """
        path = self._path(own)
        if path is None:
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            answers = record["answers"]
            if record["sha256"] != _sha256(answers) or list(answers) != list(ids):
                return None
            return [answers[number] for number in ids]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, own: Any, ids: Sequence[str], answers: Sequence[str]) -> None:
        """Keep `answers` to the questions `ids`."""
        path = self._path(own)
        if path is None:
            return
        by_id = dict(zip(ids, answers, strict=True))
        record = {"sha256": _sha256(by_id), "answers": by_id}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(record, ensure_ascii=False).encode())
        except (OSError, Stage1Error) as error:
            self.progress.note(f"Answers of the bare model are not cached: {str(error).splitlines()[0]}")
            self.folder = None


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()

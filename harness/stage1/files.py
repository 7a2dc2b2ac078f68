"""Files that are either whole or absent, and the folder for those that can be made again."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from stage1.errors import Stage1Error

TEMPORARY = ".stage1-tmp"
"""How the names of files end that are being written."""


def default_cache() -> Path:
    """The user's cache folder: `$STAGE1_CACHE`, else `stage1` under `$XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("STAGE1_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stage1"


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds either the old or the new content, whatever happens meanwhile.

    Raises:
        Stage1Error: disk full, no permission, …; nothing half-written is left.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY, delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # temporary files are private; what we publish is not
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed in the middle of a `write_atomic` left in `folder` or below."""
    for leftover in folder.rglob(f".*{TEMPORARY}"):
        with contextlib.suppress(OSError):
            leftover.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> Stage1Error:
    """The error to show when writing `path` failed."""
    return Stage1Error(
        f"Cannot write {path}: {error.strerror or error}.",
        "Free some space or choose another --output; a run goes on with --resume.",
    )


def to_json(value: Any) -> str:
    """`value` as the JSON text we write and print: indented, non-ASCII kept, NaN refused."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json_lines(path: Path, values: Iterable[Any], default: Callable[[Any], Any] | None = None) -> None:
    """Write each of `values` as a line of JSON, atomically; `default` converts what JSON does not know."""
    lines = (json.dumps(value, ensure_ascii=False, default=default) + "\n" for value in values)
    write_atomic(path, "".join(lines).encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    write_atomic(path, to_json(value).encode())

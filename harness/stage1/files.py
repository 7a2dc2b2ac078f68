"""Files that are either whole or absent, under names that stay in their folder, known again by their hash."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stage1.bounded import load_json
from stage1.errors import Stage1Error, UsageError
from stage1.text import visible

TEMPORARY = ".stage1-tmp"
"""How the names of files and folders end that are being written."""

LONGEST_NAME = 120
"""Bytes of a name that `safe_name` makes; file systems take 255, and something may be added."""

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # opening a pipe that nobody writes to would wait for ever


# -- names -------------------------------------------------------------------------------------------------


def safe_name(name: str) -> str:
    """A file name for `name`, of its own for every name: no separator, no control character, not `..`.

    Plain names stay as they are; what has to be changed gets a hash, so that two names never meet.
    """
    plain = re.sub(r"[^\w.=+-]+", "-", name).lstrip(".")
    plain = plain.encode()[:LONGEST_NAME].decode(errors="ignore")
    if plain == name and plain:
        return plain
    return f"{plain}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def expanded(name: str | Path) -> Path:
    """The path that a user typed, `~` and `~user` replaced.

    Raises:
        UsageError: there is no such user.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UsageError(f"There is no home folder for {str(name)!r}.", "Write the path in full.") from None


def whole_path(name: str | Path) -> Path:
    """The path that a user typed as it is found from any folder; links in it stay.

    Raises:
        UsageError: see `expanded`.
    """
    return Path(os.path.abspath(expanded(name)))  # noqa: PTH100 - resolve() would follow links


# -- reading -----------------------------------------------------------------------------------------------


def read_bytes(path: Path) -> bytes:
    """The content of a regular file; a pipe or a device in its place is not waited for.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    with _open_regular(path, os.O_RDONLY | _NO_WAIT) as file:
        content: bytes = file.read()
    return content


def _open_regular(path: Path, flags: int) -> Any:
    try:
        descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o644)
    except ValueError as error:  # a NUL byte in the path
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        why = os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else "it is not a regular file"
        raise OSError(errno.EINVAL, why, str(path))
    return os.fdopen(descriptor, "rb" if flags & os.O_ACCMODE == os.O_RDONLY else "wb", buffering=0)


# -- writing -----------------------------------------------------------------------------------------------


def default_cache() -> Path:
    """The user's cache folder: `$STAGE1_CACHE`, else `stage1` under `$XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("STAGE1_CACHE"):
        return expanded(own)
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "stage1"


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds either the old or the new content, whatever happens meanwhile.

    A link at `path` is replaced, never followed.

    Raises:
        Stage1Error: disk full, no permission, …; nothing half-written is left.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=temporary_prefix(path), suffix=TEMPORARY, delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # temporary files are private; what we publish is not
        temporary.replace(path)
        remove_leftovers(path.parent)
    except ValueError as error:  # a NUL byte in the path
        raise cannot_write(path, OSError(errno.EINVAL, str(error))) from None
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def remember(path: Path, content: bytes) -> None:
    """Write a file of the cache folder; one that cannot be written costs time later, nothing else."""
    with contextlib.suppress(OSError, Stage1Error):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)


def append(path: Path, content: bytes) -> None:
    """Add `content` to the end of a file in one write, through no link.

    Raises:
        OSError: it cannot be written, or is a link, a pipe or a device.
    """
    with _open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_FOLLOW | _NO_WAIT) as file:
        file.write(content)


@contextlib.contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """A folder beside `place`, to be filled and then renamed to it; where that is not done, it is removed.

    Raises:
        OSError: it cannot be made.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(place.parent)
    made = Path(tempfile.mkdtemp(TEMPORARY, temporary_prefix(place), place.parent))
    try:
        made.chmod(0o755)  # temporary folders are private; what we publish is not
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def temporary_prefix(path: Path) -> str:
    """How the temporary name of `path` begins: it tells whose process is writing."""
    return f".{path.name[:20]}.{os.getpid()}."


def remove_leftovers(folder: Path, *, deep: bool = False) -> None:
    """Remove what killed processes were writing in `folder`, if `deep` below it too; follows no link."""
    for place, folders, names in os.walk(folder):
        for name in filter(_is_leftover, [*folders, *names]):
            _remove(Path(place, name))
        if not deep:
            return


def _is_leftover(name: str) -> bool:
    """Whether it is a temporary name, and the process in it lives no more."""
    if not (name.startswith(".") and name.endswith(TEMPORARY)):
        return False
    *_, number, _ = ["", "", *name.removesuffix(TEMPORARY).split(".")]
    return number.isdecimal() and not _lives(int(number))


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _remove(leftover: Path) -> None:
    with contextlib.suppress(OSError):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> Stage1Error:
    """The error to show when writing `path` failed."""
    return Stage1Error(
        f"Cannot write {path}: {error.strerror or error}.",
        "Free some space or choose another --output; a run resumes with --resume.",
    )


# -- JSON --------------------------------------------------------------------------------------------------


def to_json(value: Any) -> str:
    """`value` as the JSON text we write and print: indented, non-ASCII kept, NaN refused.

    What a terminal would obey is written out.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    if any(ord(c) > 0xFFFF and not c.isprintable() for c in text):  # JSON has no short form for these
        text = json.dumps(value, indent=2, allow_nan=False)
    return "\n".join(map(visible, text.split("\n"))) + "\n"


def to_csv(lines: Iterable[Iterable[Any]]) -> str:
    """Lines of cells as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def write_json_lines(path: Path, values: Iterable[Any], default: Callable[[Any], Any] | None = None) -> None:
    """Write each of `values` as a line of JSON, atomically; `default` converts what JSON does not know."""
    write_atomic(path, json_lines(values, default))


def json_lines(values: Iterable[Any], default: Callable[[Any], Any] | None = None) -> bytes:
    """Each of `values` as a line of JSON; half of a surrogate pair is written out: UTF-8 has none."""
    lines = (json.dumps(value, ensure_ascii=False, default=default) + "\n" for value in values)
    return "".join(lines).encode(errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    write_atomic(path, to_json(value).encode())


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write `record` as JSON with its own hash, which `read_record` checks."""
    write_json(path, {**record, "sha256": _digest(record)})


def make_output(folder: Path) -> None:
    """Make the folder that a command was told to write to, where it is not there.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"Cannot make the folder {folder}: {error.strerror}.", "Choose another --output."
        ) from None


def read_record(path: Path, remedy: str) -> dict[str, Any]:
    """A record that `write_record` wrote.

    Raises:
        UsageError: it is missing, cut, edited or something else; with `remedy`.
    """
    try:
        record = load_json(read_bytes(path))
        if isinstance(record, dict) and record.pop("sha256", None) == _digest(record):
            return record
        why = "it was cut or edited, its checksum does not match"
    except FileNotFoundError:
        raise UsageError(f"{path} is missing.", remedy) from None
    except OSError as error:
        why = error.strerror or str(error)
    except ValueError as error:
        why = f"it is no JSON ({error})"
    raise UsageError(f"{path} cannot be used: {why}.", remedy)


def _digest(record: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(record))  # keys and tuples as they will be read
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

"""Processes that are forked from a warm one, and what they change on disk."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

CHANGES = (
    *("open", "os.mkdir", "os.rename", "os.link", "os.symlink", "os.chmod", "os.truncate"),
    *("os.remove", "os.rmdir", "shutil.rmtree"),
)
"""Audit events of what changes a file or folder; of `open`, only those that write."""

OUTSIDE = 71
"""Exit code of a process that would have changed something where it must not."""

IN_PASSING = ("/dev/null", "/dev/shm", "/dev/tty")


def fork(work: Callable[[], object]) -> int:
    """Do `work` in a process of its own; its number."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(70)
    return child


def ended(child: int) -> int:
    """Wait for a process; its exit code, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def changed(event: str, args: Sequence[Any]) -> list[Path]:
    """The paths that an audit event changes."""
    if event not in CHANGES or (event == "open" and not _writes(args)):
        return []
    named = args[:2] if event in ("os.rename", "os.link", "os.symlink") else args[:1]
    paths = [Path(os.fsdecode(name)) for name in named if isinstance(name, str | bytes | os.PathLike)]
    return [path.absolute() for path in paths if not str(path).startswith(IN_PASSING)]


def _writes(args: Sequence[Any]) -> bool:
    return isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


class Watch(NamedTuple):
    """What is said of a process that was watched."""

    killed: bool
    code: int  # exit code; negative where a signal ended it
    changes: int  # of files below the folder


def watched(inside: Path, work: Callable[[], object], kill_at: int = 0) -> Watch:
    """Do `work` in a process that ends at once where it would change something that is not `inside`.

    At its change number `kill_at` it is killed, and what it was writing to is cut somewhere in what it added.
    """
    reading, writing = os.pipe()

    def run() -> None:
        os.close(reading)
        count, growing, size = 0, None, 0

        def hook(event: str, args: tuple[Any, ...]) -> None:
            nonlocal count, growing, size
            paths = changed(event, args)
            for path in paths:
                if not path.is_relative_to(inside):
                    print(f"outside: {event} {path}", file=sys.stderr, flush=True)
                    os._exit(OUTSIDE)
            if not paths:
                return
            count += 1
            if count == kill_at:
                if growing is not None and (now := _size(growing)) > size:
                    os.truncate(growing, size + kill_at % (now - size))
                os.kill(os.getpid(), signal.SIGKILL)
            growing, size = (paths[0], _size(paths[0])) if event == "open" else (None, 0)

        sys.addaudithook(hook)
        work()
        os.write(writing, str(count).encode())

    child = fork(run)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    code = ended(child)
    return Watch(code == -signal.SIGKILL, code, int(said or 0))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0

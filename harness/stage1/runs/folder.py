"""A new run's folder: it appears with its configuration in it, in one step, or not at all."""

import errno
import os
from collections.abc import Callable
from datetime import datetime
from itertools import count
from pathlib import Path

from stage1.config import RunConfig
from stage1.errors import UsageError
from stage1.files import TEMPORARY, new_folder, remove_leftovers, safe_name

FOLDERS = ("state", "predictions")
"""Folders of every run."""


def make_folder(config: RunConfig, prepare: Callable[[Path], None]) -> Path:
    """The folder `config.output` or, where it names none, the next free one under `runs/`.

    Args:
        config: the run's.
        prepare: writes into a folder what says that it is a run.

    Raises:
        UsageError: the folder holds something already, or cannot be made.
    """
    wanted = config.output or Path("runs", f"{_stem(config)}-1")
    try:
        if wanted.is_dir() and config.output is not None:
            remove_leftovers(wanted)  # of a creation that was killed
            refuse_taken(wanted)
            prepare(wanted)
            return wanted
        with new_folder(wanted) as made:
            prepare(made)
            return _put(made, wanted, numbered=config.output is None)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        why = getattr(error, "strerror", None) or error
        raise UsageError(
            f"Cannot make the run's folder {wanted}: {why}.",
            "Choose a folder you may write to with --output.",
        ) from None


def refuse_taken(wanted: Path | None) -> None:
    """Say that `make_folder` will fail for what lies at `wanted`, before anything is loaded for it.

    Raises:
        UsageError: it is not a folder, or holds something.
    """
    if wanted is not None and os.path.lexists(wanted) and (not wanted.is_dir() or _holds_something(wanted)):
        raise _in_use(wanted)


def _holds_something(folder: Path) -> bool:
    there = (path for path in folder.iterdir() if not path.name.endswith(TEMPORARY))
    foreign = any(path.name not in FOLDERS or not path.is_dir() for path in there)
    return foreign or any(any((folder / name).glob("*")) for name in FOLDERS)


def _put(made: Path, wanted: Path, *, numbered: bool) -> Path:
    """Move the new folder `made` to `wanted`; where that is taken and `numbered`, to the next free number.

    Raises:
        UsageError: it is taken.
    """
    while True:
        try:
            return made.rename(wanted)  # an empty folder is replaced
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        if not numbered:
            raise _in_use(wanted)
        stem, _, number = wanted.name.rpartition("-")
        wanted = wanted.with_name(f"{stem}-{int(number) + 1}")


def own_place(folder: Path, name: str, same: Callable[[Path], bool], ending: str = "") -> Path:
    """The first of `name`, `name-2`, `name-3`, … in `folder` that is free or holds the `same`.

    For what must not replace others: results under other rules, limits or on other data.
    """
    for number in count(1):
        place = folder / f"{safe_name(name if number == 1 else f'{name}-{number}')}{ending}"
        if not os.path.lexists(place) or same(place):
            break
    return place


def _in_use(wanted: Path) -> UsageError:
    if not wanted.is_dir():
        return UsageError(f"{wanted} is not a folder.", "Choose another --output.")
    resume = "--resume to resume it, or " if (wanted / "config.yaml").exists() else ""
    return UsageError(f"The folder {wanted} is not empty.", f"Use {resume}another --output.")


def _stem(config: RunConfig) -> str:
    """How the name of a run begins that got none: the day, and what it is made of."""
    plugins = f"{'+'.join(config.compressor_names)}-{config.adapter.name}".replace(":", "_")
    return safe_name(f"{datetime.now():%Y-%m-%d}-{plugins}")

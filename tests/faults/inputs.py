"""Commands are given what strangers may write: each must end as commands end, and change nothing else."""

import contextlib
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

from faults.given import GIVEN, made
from faults.processes import changed, ended, fork
from faults.warm import OUT, hub
from stage1.cli import main as program
from stage1.files import TEMPORARY

KINDS = tuple(GIVEN)

BATCH = 100
"""Cases that one process is given: what the code of others leaves behind in it does not last."""

LONGEST = 60
"""Seconds that a case may take."""

MEMORY = 4 << 30
"""Bytes that a case may need beside what is there."""


def command(*words: str) -> tuple[int, str, str]:
    """Run the program in this process: exit code, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["stage1", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            program()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0, out.getvalue(), err.getvalue()
    except BaseException:
        return 70, out.getvalue(), err.getvalue() + traceback.format_exc()
    return 0, out.getvalue(), err.getvalue()


def faults(code: int, out: str, err: str) -> Iterator[str]:
    """What is wrong with how a command ended."""
    lines = err.splitlines()
    listed = sum("  " in line for line in lines) if code == 0 else 0
    if code not in (0, 1, 2, 3, 130):
        yield f"exit code {code}"
    if "Traceback" in err:
        yield "traceback"
    if len(lines) - listed > 51 or any(len(line) > 1100 for line in lines):
        yield "long message"
    if not all(text.replace("\n", "").isprintable() for text in (out, err)):
        yield "raw text"
    if code in (1, 2) and not err.strip() and not out.strip():
        yield "no message"


def state(folder: Path) -> dict[str, str]:
    """Every file below `folder` with a hash of its content; links are not followed."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def case(
    kind: str, number: int, seed: int, folder: Path, outside: list[str], native: int
) -> tuple[int, list[str], str]:
    """One case: exit code, what is wrong, and what the command was and said.

    `outside` gets the paths that were changed outside of `folder`; what is printed past Python goes to the
    file `native`.
    """
    place = folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    os.chdir(place)
    words, may_change = GIVEN[kind](Random(f"{seed} {kind} {number}"), place, folder / "made")
    before = state(place)
    outside.clear()
    begun = os.lseek(native, 0, os.SEEK_END)
    code, out, err = command(*words)
    err += os.pread(native, 1 << 20, begun).decode(errors="replace")
    wrong = [*faults(code, out, err), *(f"outside: {path}" for path in set(outside))]
    after = state(place)
    for name in before.keys() | after.keys():
        if before.get(name) != after.get(name) and not name.startswith((OUT, *may_change)):
            wrong.append(f"{'left over' if name not in before else 'changed'}")
    wrong += ["left over" for path in place.rglob(f"*{TEMPORARY}")]
    if code == 2 and any(place.glob(f"{OUT}*")):
        wrong.append("half-written")
    return code, wrong, f"{words}: {out[-300:]!r} {err[-1500:]!r}"


def inputs(kind: str, most: int, seed: int, folder: Path, first: int = 0) -> Counter[str]:
    """Give commands `most` mutated inputs of a `kind`, from case number `first`; what came of it."""
    os.environ["STAGE1_CACHE"] = str(folder / "cache")
    made(folder / "made")
    counts: Counter[str] = Counter()
    number = first
    while number < first + most:
        batch = range(number, min(number + BATCH, first + most))
        reading, writing = os.pipe()
        child = fork(partial(_batch, kind, batch, seed, folder, writing))
        os.close(writing)
        with os.fdopen(reading) as pipe:
            for line in pipe:
                code, wrong, said = json.loads(line)
                counts[kind] += 1
                counts[f"exit code {code}"] += 1
                counts.update(f"broken: {fault.partition(':')[0]}" for fault in set(wrong))
                if wrong:
                    print(f"{kind} {number} of seed {seed}: {wrong}: {said}", file=sys.stderr, flush=True)
                number += 1
        if (code := ended(child)) or number in batch:
            counts[kind] += 1
            counts[f"broken: died with {code}"] += 1
            print(f"{kind} {number} of seed {seed}: died with {code}", file=sys.stderr, flush=True)
            number += 1
    return counts


def _batch(kind: str, numbers: range, seed: int, folder: Path, pipe: int) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    outside: list[str] = []
    native = os.open(folder / "native", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(native, descriptor)

    def hook(event: str, args: tuple[object, ...]) -> None:
        outside.extend(
            str(path)
            for path in changed(event, args)
            if not path.is_relative_to(folder) and not path.is_relative_to(hub(folder.parent))
        )

    sys.addaudithook(hook)
    for number in numbers:
        signal.alarm(LONGEST)
        line = json.dumps(case(kind, number, seed, folder, outside, native)) + "\n"
        os.write(pipe, line.encode())

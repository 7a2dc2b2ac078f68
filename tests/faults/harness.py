"""Faults on purpose, with counts: `python tests/faults/harness.py --kills 100 --inputs 500 --seed 0`.

`kills`: a process that trains and evaluates is killed at one of its changes of the file system, another goes
on and is killed too, a third finishes: weights and results must be those of a run that nobody disturbed, and
nothing temporary is left. `inputs`: configurations, settings and run folders are mutated, and a command is
given each. It must end with 0, 1, 2 or 130, and with a short message of plain text without a traceback.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stage1.cli import main as program
from stage1.config import RunConfig, merge, validate
from stage1.experiment import train_run
from stage1.files import TEMPORARY
from stage1.progress import Progress
from stage1.runs.run import Run

CHANGES = ("open", "os.mkdir", "os.rename", "os.chmod", "os.remove", "os.rmdir", "shutil.rmtree")
SMALL = (
    *("train.steps=4", "train.check_every=2", "train.save_every=1", "train.check_questions=2"),
    *("data.train=40", "data.selection=8", "eval.limit=4", "eval.resamples=50"),
)


def config(output: str) -> RunConfig:
    """A run of a second."""
    return validate(merge({}, {"output": output}, SMALL))


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


def killed_at(nth: int, inside: Path, work: Callable[[], object]) -> bool:
    """Do `work` in a process that is killed at its `nth` change below `inside`; whether it came so far."""
    left = nth

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if event not in CHANGES or not isinstance(args[0], str | Path) or not _writes(event, args):
            return
        if not str(Path(args[0]).absolute()).startswith(str(inside)):
            return
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched() -> None:
        sys.addaudithook(hook)
        work()

    return ended(fork(watched)) == -signal.SIGKILL


def _writes(event: str, args: tuple[Any, ...]) -> bool:
    return event != "open" or bool(args[2] & (os.O_WRONLY | os.O_RDWR))


def outcome(run: Path) -> dict[str, Any]:
    """What must not depend on kills: the weights, and the results but for the hashes of files with a date."""
    results = json.loads((run / "results.json").read_text())
    numbers = {key: value for key, value in results.items() if key not in ("files", "sha256")}
    return {"bottleneck.safetensors": (run / "bottleneck.safetensors").read_bytes(), "results.json": numbers}


def kills(most: int, generator: random.Random, folder: Path) -> Counter[str]:
    """Kill at every change of a file, at most `most` times, and once more on the way; what came of it."""
    counts: Counter[str] = Counter()
    os.environ["STAGE1_CACHE"] = str(folder / "cache")

    def resume(run: Path) -> None:
        there = (run / "config.yaml").exists()
        train_run(config(str(run)), Progress(), resume=Run.open(run) if there else None)

    whole = folder / "whole"
    resume(whole)
    wanted = outcome(whole)
    nth, run = 0, folder / "run"
    while counts["kills"] < most:
        shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(folder / "cache", ignore_errors=True)
        nth += 1
        if not killed_at(nth, folder, lambda: resume(run)):
            counts["changes of a file, all of them tried"] = nth - 1
            break
        counts["kills"] += 1
        second = generator.randrange(1, 30)
        counts["kills"] += killed_at(second, folder, lambda: resume(run))
        if ended(fork(lambda: resume(run))) != 0:
            counts["broken: cannot resume"] += 1
            continue
        for name, content in outcome(run).items():
            counts[f"broken: other {name}"] += wanted[name] != content
        counts["broken: left over"] += any(folder.rglob(f"*{TEMPORARY}"))
    return +counts


def command(*words: str) -> tuple[int, str, str]:
    """Run the program in this process: exit code, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["stage1", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            program()
    except SystemExit as ended:
        return int(ended.code or 0), out.getvalue(), err.getvalue()
    except BaseException as error:
        return 70, out.getvalue(), f"{err.getvalue()}Traceback: {error!r}"
    return 0, out.getvalue(), err.getvalue()


STRANGE = (
    *(b"\0", b"\xff\xfe", b"\x1b[2J", b"[" * 3000, b"&a [*a]", b"\n", b": ", b"- ", b"nan", b"-1", b"1e999"),
    *(
        "\u202e".encode(),
        b"null",
        b"true",
        b"{}",
        b"[]",
        b"'",
        b'"',
        b"../..",
        b"!!python/none x",
        b"9" * 400,
    ),
)


def mutated(content: bytes, generator: random.Random) -> bytes:
    """`content` with one to three changes."""
    for _ in range(generator.randint(1, 3)):
        place = generator.randint(0, len(content))
        match generator.randrange(5):
            case 0:
                content = content[:place]
            case 1:
                content = content[:place] + generator.choice(STRANGE) + content[place:]
            case 2:
                content = content[:place] + content[place + generator.randint(1, 40) :]
            case 3:
                content = content[:place] + bytes([generator.randrange(256)]) + content[place + 1 :]
            case _:
                lines = content.split(b"\n")
                generator.shuffle(lines)
                content = b"\n".join(lines)
    return content


def cases(folder: Path, generator: random.Random) -> Iterator[tuple[str, list[str]]]:
    """Mutated inputs without end: of what kind, and the command that is given them."""
    whole = folder / "whole"
    text = config("out").to_yaml().encode()
    names = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file()]
    while True:
        (folder / "mutated.yaml").write_bytes(mutated(text, generator))
        yield "configuration", ["config", "show", str(folder / "mutated.yaml")]
        setting = mutated(b"compressor.dim=4", generator).decode(errors="replace").replace("\0", "")
        yield "setting", ["config", "show", "--set", setting]
        run, name = folder / "spoilt", generator.choice(names)
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        (run / name).write_bytes(mutated((run / name).read_bytes(), generator))
        yield "run folder", ["push", str(run), "me/it", "--dry-run"]


def inputs(most: int, generator: random.Random, folder: Path) -> Counter[str]:
    """Give commands `most` mutated inputs; what came of it."""
    counts: Counter[str] = Counter()
    train_run(config(str(folder / "whole")), Progress())
    for kind, words in cases(folder, generator):
        code, _, err = command(*words)
        counts[kind] += 1
        counts[f"exit code {code}"] += 1
        lines = err.splitlines()
        listed = sum("  " in line for line in lines) if code == 0 else 0
        for fault, found in {
            "exit code": code not in (0, 1, 2, 130),
            "traceback": "Traceback" in err,
            "long message": len(lines) - listed > 51 or any(len(line) > 1100 for line in lines),
            "raw text": not err.replace("\n", "").isprintable(),
        }.items():
            if found:
                counts[f"broken: {fault}"] += 1
                print(f"{fault}: {words}: {err[-500:]!r}", file=sys.stderr)
                shutil.copytree(folder, Path(tempfile.mkdtemp("-stage1-fault")) / "case", symlinks=True)
        if sum(counts[kind] for kind in ("configuration", "setting", "run folder")) >= most:
            return counts
    raise AssertionError


def run(kill: int, give: int, seed: int) -> Counter[str]:
    """All of it; the counts."""
    counts: Counter[str] = Counter()
    for work, most in ((kills, kill), (inputs, give)):
        if most:
            with tempfile.TemporaryDirectory() as folder:
                counts += work(most, random.Random(seed), Path(folder).resolve())
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for option, default in (("--kills", 100), ("--inputs", 500), ("--seed", 0)):
        parser.add_argument(option, type=int, default=default)
    given = parser.parse_args()
    found = run(given.kills, given.inputs, given.seed)
    for what, count in sorted(found.items()):
        print(f"{count:7,}  {what}")
    sys.exit(any(what.startswith("broken") for what in found))

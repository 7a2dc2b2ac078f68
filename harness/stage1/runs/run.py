"""The run directory: what is in it, and how it survives a kill.

    RUN/ config.yaml  manifest.json  data.json  bottleneck.safetensors + .json  metrics.jsonl  timings.json
         results.json  predictions/<row>.jsonl  tasks/<task>/  evaluations/<data>/ (other rules)
         diagnosis.json  state/state.safetensors (resume)
         phase1/ (the first of two phases, with selection.json: whether the second is run)

Every file is written atomically and carries a checksum, so that what was cut, edited or damaged is named and
not believed. `folder.py` makes a new run's folder, `state.py` is what is resumed.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from filelock import FileLock, Timeout

from stage1.config import RunConfig, read_yaml, untrusting, validate
from stage1.data.datasets import TrainedOn
from stage1.errors import UsageError
from stage1.files import (
    read_bytes,
    read_record,
    remove_leftovers,
    safe_name,
    write_atomic,
    write_json_lines,
    write_record,
)
from stage1.processes import is_first
from stage1.runs.answers import Answer, read, written
from stage1.runs.folder import FOLDERS, make_folder, own_place
from stage1.runs.provenance import provenance
from stage1.runs.state import State

METRICS = "metrics.jsonl"
"""Name of the log: a JSON object a line for each measurement. A plugin writes it, so it may be missing."""

TIMINGS = "timings.json"

OTHERS = "evaluations"
"""Folder of what was measured under other rules, limits or on other data: in each the files of a run."""

EVIDENCE = ("config.yaml", "manifest.json", "data.json", "bottleneck.json", "bottleneck.safetensors")
"""Files that an evaluation rests on, beside the answers."""

SEAL = "# sha256 of the lines above: "
"""Last line of a run's config.yaml: what was cut or edited does not count as the run's configuration."""


class Run:
    """One run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # -- creating and opening -------------------------------------------------------------------------

    @classmethod
    def create(cls, config: RunConfig) -> "Run":
        """A new folder, `config.output` or the next free one under `runs/`.

        Raises:
            UsageError: the folder holds something already, or cannot be made.
        """
        return cls(make_folder(config, lambda path: cls(path).prepare(config)))

    def prepare(self, config: RunConfig) -> None:
        """Make the folders of a run and write its configuration, which says that they are one."""
        for folder in FOLDERS:
            (self.path / folder).mkdir(parents=True, exist_ok=True)
        self.write_config(config)

    @classmethod
    def open(cls, path: Path) -> "Run":
        """An existing run.

        Raises:
            UsageError: there is none at `path`, its configuration is damaged, or it holds links through which
                something outside would be written.
        """
        if not os.path.lexists(path / "config.yaml"):
            there = "holds no run (no config.yaml)" if path.is_dir() else "does not exist"
            raise UsageError(
                f"{path} {there}.", "Pass the folder that `stage1 train` printed, runs/… by default."
            )
        run = cls(path)
        run._refuse_links()
        run.settings  # noqa: B018 - refuses one that is damaged
        return run

    @classmethod
    def begun(cls, path: Path) -> "Run | None":
        """The run in `path`, if one was begun there.

        Raises:
            UsageError: as `open`.
        """
        return cls.open(path) if (path / "config.yaml").exists() else None

    def _refuse_links(self) -> None:
        """Nothing of ours is written through a link, or into a pipe."""
        for run in (self.path, self.path / "phase1", *(self.path / OTHERS).glob("*")):
            folders = [run / name for name in (*FOLDERS, "tasks", OTHERS)]
            for folder in (*folders, *(run / "tasks").glob("*"), *([run] if run != self.path else [])):
                if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                    raise _not_ours(folder, "a folder")
            for file in (run / METRICS, run / ".lock"):
                if file.is_symlink() or (file.exists() and not file.is_file()):
                    raise _not_ours(file, "a file")

    @classmethod
    def latest(cls) -> "Run":
        """The newest run under `runs/` that is not finished."""
        found = [p.parent for p in Path("runs").glob("*/config.yaml")]
        # A first phase lies in its run's own folder, which may be called runs/.
        folders = [p for p in found if not cls(p).trained and not (p.parent / "config.yaml").exists()]
        if not folders:
            raise UsageError("There is no unfinished run under runs/.", "Name one: --resume --output RUN.")
        return cls.open(max(folders, key=lambda p: p.stat().st_mtime))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run against another program; of several processes at it, the first one does."""
        if not is_first():
            yield
            return
        try:
            with FileLock(self.path / ".lock", timeout=0):
                remove_leftovers(self.path, deep=True)
                yield
        except Timeout:
            raise UsageError(
                f"Another process is working in {self.path}.", "Wait for it, or choose another --output."
            ) from None

    # -- what is in it --------------------------------------------------------------------------------

    def require_trained(self) -> None:
        """Refuse a run whose training has not ended.

        Raises:
            UsageError: with the command that finishes it.
        """
        if not self.trained:
            remedy = f"Finish it: stage1 train --resume --output {self.path}"
            raise UsageError(f"{self.path} is not trained yet.", remedy)

    def write_config(self, config: RunConfig) -> None:
        """Replace config.yaml, the fully resolved configuration."""
        write_atomic(self.path / "config.yaml", seal(config.to_yaml()))

    @property
    def config(self) -> RunConfig:
        """The run's resolved configuration; that its model's Python code may run, it does not say."""
        return validate(untrusting(self.settings))

    @property
    def settings(self) -> dict[str, Any]:
        """What config.yaml holds: for `granted`, which asks before the model's Python code runs.

        Raises:
            UsageError: it is cut, edited, or no configuration of a run.
        """
        path = self.path / "config.yaml"
        try:
            text, _, sealed = read_bytes(path).rpartition(SEAL.encode())
        except OSError as error:
            raise UsageError(f"Cannot read {path}: {error.strerror}.", "Check the path.") from None
        if sealed.decode(errors="replace").strip() != hashlib.sha256(text).hexdigest():
            raise UsageError(
                f"{path} was cut or edited: its last line, a checksum, does not match.",
                f"Copy it again from where it was made. Settings of your own start a new run: "
                f"stage1 train {quote(str(path))} --output NEW",
            )
        return read_yaml(path)

    @property
    def trained(self) -> bool:
        """True once training ended and the bottleneck is in place."""
        return (self.path / "bottleneck.json").exists()

    def write_manifest(self, extra: Mapping[str, Any]) -> None:
        """What is needed to know where the numbers came from."""
        write_record(self.path / "manifest.json", {**provenance(), **extra})

    def read_manifest(self) -> dict[str, Any]:
        """What `write_manifest` wrote.

        Raises:
            UsageError: it is missing or damaged; what training saw is not known then.
        """
        return read_record(self.path / "manifest.json", f"{COPY_AGAIN}, or train the run anew.")

    def write_timings(self, timings: Mapping[str, Any]) -> None:
        """Add to timings.json how long things took: apart from the results, which are the same every time."""
        write_record(self.path / TIMINGS, {**self.read_timings(), **timings})

    def read_timings(self) -> dict[str, Any]:
        """The content of timings.json; empty without it.

        Raises:
            UsageError: it is damaged.
        """
        path = self.path / TIMINGS
        if not os.path.lexists(path):
            return {}
        return read_record(path, "Remove it: a run may be without.")

    def write_trained_on(self, data: TrainedOn) -> None:
        """Replace data.json: by what the run knows its questions, and the passages it has seen, again."""
        write_record(self.path / "data.json", {**data._asdict(), "passages": sorted(data.passages)})

    def read_trained_on(self) -> TrainedOn:
        """The content of data.json.

        Raises:
            UsageError: it is missing or damaged.
        """
        tree = read_record(
            self.path / "data.json", f"{COPY_AGAIN}, or train it again: what it has seen is not known."
        )
        return TrainedOn(tree["content"], tree["test"], frozenset(tree["passages"]))

    def write_evaluation(self, results: Mapping[str, Any], answers: Mapping[str, Sequence[Answer]]) -> None:
        """results.json, and every row's answers as predictions/<row>.jsonl.

        The results keep the hash of every file that they were made of.
        """
        for row, given in answers.items():
            write_atomic(self._predictions(row), written(given))
        paths = [self.path / name for name in EVIDENCE] + [self._predictions(row) for row in answers]
        files = {
            path.relative_to(self.path).as_posix(): hashlib.sha256(read_bytes(path)).hexdigest()
            for path in paths
            if path.is_file()  # an evaluation under other rules has no bottleneck of its own
        }
        write_record(self.path / "results.json", {**results, "files": files})

    def _predictions(self, row: str) -> Path:
        return self.path / "predictions" / f"{safe_name(row)}.jsonl"

    def write_tasks(
        self, results: Mapping[str, Any], samples: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
    ) -> None:
        """tasks/TASK/results.json, and each row's requests and answers as tasks/TASK/ROW.jsonl.

        Where a task was asked by other rules, of other documents or of fewer, tasks/TASK-2 and so on.
        """
        for entry in results["tasks"]:
            same = partial(_same_task, rules=results["protocol"], entry=entry)
            folder = own_place(self.path / "tasks", entry["task"], same)
            folder.mkdir(parents=True, exist_ok=True)
            for row, logged in samples[entry["task"]].items():
                write_json_lines(folder / f"{safe_name(row)}.jsonl", logged, default=str)
            write_record(folder / "results.json", {**results, "tasks": [entry]})

    def write_diagnosis(self, diagnosis: Mapping[str, Any]) -> None:
        """Replace diagnosis.json."""
        write_record(self.path / "diagnosis.json", diagnosis)

    def tidy(self) -> None:
        """Remove what killed processes left behind in a trained run: states, and files half written."""
        for phase in (self, Run(self.path / "phase1")):
            if phase.trained:
                phase.state.drop()
        remove_leftovers(self.path, deep=True)

    def read_results(self) -> dict[str, Any] | None:
        """What was measured, or None before the first evaluation.

        Raises:
            UsageError: results.json is damaged.
        """
        if not os.path.lexists(self.path / "results.json"):
            return None
        results = self._results()
        del results["files"]
        return results

    def _results(self) -> dict[str, Any]:
        return read_record(self.path / "results.json", self._evaluate_again)

    @property
    def _evaluate_again(self) -> str:
        return f"Evaluate it again: stage1 eval {quote(str(self.path))}"

    def read_answers(self, row: str) -> list[Answer]:
        """What was answered in a row, in the order in which it was asked.

        Raises:
            UsageError: the row was not asked, or its file is missing, damaged or of another evaluation.
        """
        path, remedy = self._predictions(row), self._evaluate_again
        try:
            content = read_bytes(path)
        except OSError as error:
            raise UsageError(f"Cannot read {path}: {error.strerror}.", remedy) from None
        if hashlib.sha256(content).hexdigest() != self._results()["files"].get(f"predictions/{path.name}"):
            raise UsageError(f"{path} was cut or edited, or is of another evaluation.", remedy)
        try:
            return read(content)
        except ValueError as error:
            raise UsageError(f"{path} holds no answers: {error}.", remedy) from None

    def metrics(self) -> list[dict[str, Any]]:
        """The entries of metrics.jsonl; a line that a kill or a full disk cut short is left out.

        Raises:
            UsageError: it is there and cannot be read.
        """
        path = self.path / METRICS
        try:
            lines = read_bytes(path).decode(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UsageError(
                f"Cannot read {path}: {error.strerror}.", "Remove it: a run may be without."
            ) from None
        return [entry for line in lines if (entry := _log_entry(line)) is not None]

    def best_selection(self) -> dict[str, Any]:
        """The log entry of the checkpoint that was chosen, as far as the log tells; empty without one."""
        measured = (entry for entry in self.metrics() if "selection" in entry)
        return min(measured, key=lambda entry: entry["selection"]["score"], default={})

    @property
    def state(self) -> State:
        """What a training that is not finished is resumed from."""
        return State(self.path / "state" / "state.safetensors")

    @property
    def step(self) -> int:
        """Optimiser steps after which the run resumes: its last one's, its resumable state's, or 0.

        Raises:
            UsageError: the state is damaged.
        """
        if self.trained:
            return max((entry["step"] for entry in self.metrics()), default=0)
        return self.state.step


def _same_task(folder: Path, rules: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Whether `folder` holds the results of the same task, by the same rules, of the same documents."""
    try:
        there = read_record(folder / "results.json", "")
    except UsageError:  # damaged, or never finished
        return True
    (before,) = there["tasks"]
    keys = ("task", "num_fewshot", "documents")
    return there["protocol"] == rules and all(before[key] == entry[key] for key in keys)


COPY_AGAIN = "Copy it again from where it was made"


def seal(text: str) -> bytes:
    """A run's configuration `text` with the last line that says it is whole."""
    return f"{text}{SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n".encode()


def _not_ours(path: Path, what: str) -> UsageError:
    return UsageError(
        f"{path} is not {what} of the run but a link or something else: it would be written outside.",
        f"Remove it, or put {what} there.",
    )


def _log_entry(line: str) -> dict[str, Any] | None:
    """A line of the log, if it is one: it has a step and, where there is a `selection`, its score."""
    try:
        entry = json.loads(line)
        numbers = [entry["step"], entry["selection"]["score"] if "selection" in entry else 0.0]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return entry if all(isinstance(number, int | float) for number in numbers) else None

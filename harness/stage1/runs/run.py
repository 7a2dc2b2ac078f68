"""The run directory: what is in it, and how it survives a kill.

    RUN/ config.yaml  manifest.json  data.json  bottleneck.safetensors + .json  metrics.jsonl  results.json
         predictions/<row>.jsonl  tasks/<task>/  diagnosis.json  state/state.safetensors (resume)
         phase1/ (the first of two phases, with selection.json: whether the second is run)

Every file is written atomically; `state.safetensors` is one file, so weights, optimiser and step cannot
disagree.
"""

import json
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stage1.config import RunConfig, read_yaml, validate
from stage1.data.datasets import TrainedOn
from stage1.errors import UsageError
from stage1.files import remove_leftovers, write_atomic, write_json, write_json_lines

METRICS = "metrics.jsonl"
"""Name of the log: a JSON object a line for each measurement. A plugin writes it, so it may be missing."""

LIBRARIES = ("stage1", "torch", "transformers", "lm-eval", "accelerate", "safetensors", "datasets")


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
        try:
            if config.output is None:
                path = _next_free(config)
            else:
                path = config.output
                path.mkdir(parents=True, exist_ok=True)
                if any(path.iterdir()):
                    resume = "--resume to go on with it, or " if (path / "config.yaml").exists() else ""
                    raise UsageError(f"The folder {path} is not empty.", f"Use {resume}another --output.")
            (path / "state").mkdir()
            (path / "predictions").mkdir()
        except OSError as error:
            raise UsageError(
                f"Cannot make the run's folder {error.filename}: {error.strerror}.",
                "Choose a folder you may write to with --output.",
            ) from None
        run = cls(path)
        run.write_config(config)
        return run

    @classmethod
    def open(cls, path: Path) -> "Run":
        """An existing run.

        Raises:
            UsageError: there is none at `path`.
        """
        if not (path / "config.yaml").is_file():
            there = "holds no run (no config.yaml)" if path.is_dir() else "does not exist"
            raise UsageError(
                f"{path} {there}.", "Pass the folder that `stage1 train` printed, runs/… by default."
            )
        return cls(path)

    @classmethod
    def latest(cls) -> "Run":
        """The newest run under `runs/` that is not finished."""
        found = [p.parent for p in Path("runs").glob("*/config.yaml")]
        # A first phase lies in its run's own folder, which may be called runs/.
        folders = [p for p in found if not cls(p).trained and not (p.parent / "config.yaml").exists()]
        if not folders:
            raise UsageError("There is no unfinished run under runs/.", "Name one: --resume --output RUN.")
        return cls(max(folders, key=lambda p: p.stat().st_mtime))

    @contextmanager
    def lock(self, *, ours: bool = True) -> Iterator[None]:
        """Hold the run against another program; not `ours` in the helper processes of the one that has it."""
        if not ours:
            yield
            return
        try:
            with FileLock(self.path / ".lock", timeout=0):
                remove_leftovers(self.path)
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
        write_atomic(self.path / "config.yaml", config.to_yaml().encode())

    @property
    def config(self) -> RunConfig:
        """The run's resolved configuration."""
        return validate(read_yaml(self.path / "config.yaml"))

    @property
    def trained(self) -> bool:
        """True once training ended and the bottleneck is in place."""
        return (self.path / "bottleneck.json").exists()

    def write_manifest(self, extra: Mapping[str, Any]) -> None:
        """What is needed to know where the numbers came from."""
        record = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
            "platform": platform.platform(),
            "git": _git_state(),
            **extra,
        }
        write_json(self.path / "manifest.json", record)

    def read_manifest(self) -> dict[str, Any]:
        """The manifest, or an empty one where it was lost."""
        try:
            manifest: dict[str, Any] = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return manifest

    def write_trained_on(self, data: TrainedOn) -> None:
        """Replace data.json: by what the run knows its questions, and the passages it has seen, again."""
        write_json(self.path / "data.json", {**data._asdict(), "passages": sorted(data.passages)})

    def read_trained_on(self) -> TrainedOn:
        """The content of data.json.

        Raises:
            UsageError: it is missing or damaged.
        """
        path = self.path / "data.json"
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            return TrainedOn(tree["content"], tree["test"], frozenset(tree["passages"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(
                f"{path}, which says what the run was trained on, is missing or damaged.",
                "Without it, other questions cannot be told from those it has seen: train it again.",
            ) from None

    def write_evaluation(
        self, results: Mapping[str, Any], predictions: Mapping[str, Mapping[str, str]]
    ) -> None:
        """results.json, and every row's answers as predictions/<row>.jsonl."""
        for row, answers in predictions.items():
            lines = ({"id": i, "prediction": a} for i, a in answers.items())
            write_json_lines(self.path / "predictions" / f"{row}.jsonl", lines)
        write_json(self.path / "results.json", results)

    def write_tasks(
        self, results: Mapping[str, Any], samples: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
    ) -> None:
        """tasks/TASK/results.json, and each row's requests and answers as tasks/TASK/ROW.jsonl."""
        for entry in results["tasks"]:
            folder = self.path / "tasks" / re.sub(r"[^\w.-]", "_", entry["task"])
            folder.mkdir(parents=True, exist_ok=True)
            for row, logged in samples[entry["task"]].items():
                write_json_lines(folder / f"{row}.jsonl", logged, default=str)
            write_json(folder / "results.json", {**results, "tasks": [entry]})

    def write_diagnosis(self, diagnosis: Mapping[str, Any]) -> None:
        """Replace diagnosis.json."""
        write_json(self.path / "diagnosis.json", diagnosis)

    def read_results(self) -> dict[str, Any] | None:
        """results.json, or None before the first evaluation."""
        path = self.path / "results.json"
        if not path.exists():
            return None
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return results

    def metrics(self) -> list[dict[str, Any]]:
        """The entries of metrics.jsonl; a line that a kill or a full disk cut short is left out."""
        path = self.path / METRICS
        entries = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            with suppress(ValueError):
                entries.append(json.loads(line))
        return entries

    def best_selection(self) -> dict[str, Any]:
        """The log entry of the checkpoint that was chosen, as far as the log tells; empty without one."""
        return min(self.metrics(), key=lambda entry: entry["selection"]["score"], default={})

    # -- resumable state ------------------------------------------------------------------------------

    @property
    def _state(self) -> Path:
        return self.path / "state" / "state.safetensors"

    def save_state(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replace the resumable state: tensors and JSON facts in one file."""
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_atomic(self._state, save(whole, metadata={"facts": json.dumps(facts)}))

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last saved state, or None where the run had not come that far.

        Raises:
            UsageError: the file is damaged.
        """
        if not self._state.exists():
            return None
        with self._opened_state() as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads(file.metadata()["facts"])

    @property
    def step(self) -> int:
        """Optimiser steps after which the run goes on: its last one's, its resumable state's, or 0.

        Raises:
            UsageError: the state is damaged.
        """
        if self.trained:
            return max((entry["step"] for entry in self.metrics()), default=0)
        if not self._state.exists():
            return 0
        with self._opened_state() as file:
            return int(json.loads(file.metadata()["facts"])["step"])

    @contextmanager
    def _opened_state(self) -> Iterator[Any]:
        try:
            with safe_open(self._state, framework="pt") as file:
                yield file
        except (SafetensorError, ValueError, KeyError, TypeError):
            raise UsageError(
                f"The resumable state {self._state} is damaged.", "Remove that file to start the run over."
            ) from None

    def drop_state(self) -> None:
        """Training has ended; nothing is left to resume."""
        self._state.unlink(missing_ok=True)


def _next_free(config: RunConfig) -> Path:
    plugins = f"{'+'.join(config.compressors)}-{config.adapter.name}"
    stem = f"{datetime.now():%Y-%m-%d}-{plugins}".replace(":", "_")
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    number = 1
    while True:
        try:
            (runs / f"{stem}-{number}").mkdir()
        except FileExistsError:
            number += 1
        else:
            return runs / f"{stem}-{number}"


def _git_state() -> dict[str, Any] | None:
    """Commit of the working directory's repository, and whether it has uncommitted changes."""

    def git(*args: str) -> str:
        command = ["git", *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None

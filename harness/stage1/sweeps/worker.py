"""Where the runs of a sweep are carried out, and what a process does that carries them out."""

import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from stage1.config.messages import validated
from stage1.errors import Stage1Error, UsageError
from stage1.experiment import train_run
from stage1.plugins import load_plugins
from stage1.plugins.executors import Executor, Job, JobOutcome
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.session import Session


def executor(on: str | None, jobs: int | None, options: Mapping[str, Any]) -> Executor | None:
    """The executor of that name with its options checked; None: this process, one run after the other.

    Args:
        on: `NAME` or `NAME://ADDRESS`; by default `local` for several jobs.
        jobs: how many runs at a time.
        options: the executor's own.

    Raises:
        UsageError: there is no such executor.
        ConfigError: an option cannot be used.
    """
    if on is None:
        if options:
            raise UsageError(f"--on-set {next(iter(options))} is for an executor.", "Name one by --on.")
        if jobs in (None, 1):
            return None
        on = "local"
    name, address, _ = on.partition("://")
    cls = load_plugins().get("executor", name)
    given = {**options, **({"address": on} if address else {}), **({} if jobs is None else {"jobs": jobs})}
    return cls(validated(cls.Config, given, f"--on {name}"))


class Worker:
    """Trains and evaluates runs one after the other; the model is loaded once for those that share it.

    Args:
        progress: told what goes on.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._session: Session | None = None

    def __call__(self, job: Job) -> JobOutcome:
        """Carry out a job in the folder that it names; an error of ours ends the job alone."""
        config = job.config.model_copy(update={"output": job.run})
        try:
            outcome = train_run(
                config, self.progress, resume=Run.begun(job.run), rows=job.rows, session=self._session
            )
        except Stage1Error as error:
            return JobOutcome(str(error))
        self._session = outcome.session
        return JobOutcome()


@cache
def _worker() -> Worker:
    """This process's only one."""
    return Worker(Progress())


def carry_out(job: Job) -> JobOutcome:
    """What an executor sends to other processes; see `stage1.plugins.executors.JobWork`.

    Without the sweep's storage, the run is made in a temporary folder and sent back.
    """
    if (job.folder / job.mark).exists():
        return _worker()(job)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "run"
        outcome = _worker()(job._replace(run=made))
        return outcome if outcome.error else JobOutcome(files=_packed(made))


def _packed(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name != ".lock"
    }


def unpack(files: Mapping[str, bytes], folder: Path) -> None:
    """Put a run that was sent back where it belongs: whole, or not at all.

    Raises:
        Stage1Error: a file lies outside of it, or the disk is full.
    """
    made = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(made, ignore_errors=True)
    for name, content in files.items():
        path = made / name
        if not path.resolve().is_relative_to(made.resolve()):
            raise Stage1Error(f"A run sent back holds {name!r}, which lies outside of it.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    shutil.rmtree(folder, ignore_errors=True)
    made.replace(folder)

"""Where the runs of a sweep are carried out: in processes, on a cluster, …"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel

from stage1.config import RunConfig
from stage1.plugins.interfaces import ComponentConfig


class Job(NamedTuple):
    """One run of a sweep, as any process on any machine can take it."""

    name: str  # for people: the cell's settings
    config: RunConfig  # whole
    run: Path  # the run's folder, absolute
    folder: Path  # the sweep's, absolute
    mark: str  # the name of a file in `folder`: a machine that sees it shares the storage
    rows: tuple[str, ...] | None  # to ask in the evaluation; None: all there are


class JobOutcome(NamedTuple):
    """What came of a job."""

    error: str | None = None  # why it failed; None: it is done
    files: dict[str, bytes] | None = None  # the run's folder, from a machine without the sweep's storage


JobWork = Callable[[Job], JobOutcome]
"""A function of a module, which can be sent by its name. It trains and evaluates a job's run, resumes one
that was begun, and keeps the process's model for the next job. A job that was lost may be done again."""


class Executor(ABC):
    """Carries out the runs of a sweep. The first line of the docstring is what `stage1 plugins list` shows.

    Args:
        config: validated options, from `--on-set`.
    """

    name: ClassVar[str]
    """What the user types: `--on NAME`."""

    Config: ClassVar[type[BaseModel]] = ComponentConfig
    """Its options. One called `jobs` is set by `--jobs`, one called `address` by `--on NAME://ADDRESS`."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def carry_out(self, work: JobWork, jobs: Sequence[Job]) -> Iterator[tuple[Job, JobOutcome]]:
        """Do `work` on every job, and yield each with what came of it, in the order in which they end.

        A job whose process or machine was lost is done again elsewhere, or yielded with an error. On
        KeyboardInterrupt, what is going on is told to stop: runs can be resumed.

        Raises:
            UsageError: the place cannot be used: a package is not installed, a cluster does not answer.
        """

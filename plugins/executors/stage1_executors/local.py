"""Processes of this machine."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from multiprocessing.queues import Queue

import torch
from pydantic import Field

from stage1 import ComponentConfig, Executor, Job, JobOutcome, JobWork, hookimpl


class LocalConfig(ComponentConfig):
    """Options of `local`."""

    jobs: int = Field(2, gt=0, description="Processes at a time.")


class Local(Executor):
    """Processes of this machine, each with its share of the cores, and a GPU of its own if there are several.

    With fewer GPUs than processes they are shared. A process that is killed, for its memory say, fails its
    own run alone: those that were going on are done again, one at a time, until it is known which it was.
    """

    name = "local"
    Config = LocalConfig
    config: LocalConfig

    def carry_out(self, work: JobWork, jobs: Sequence[Job]) -> Iterator[tuple[Job, JobOutcome]]:
        waiting, processes = list(jobs), self.config.jobs
        while waiting:
            lost = yield from _pool(work, waiting, processes)
            for suspect in lost[:processes]:  # jobs are begun in their order: these were going on
                if (yield from _pool(work, [suspect], 1)):
                    yield suspect, JobOutcome("its process was killed; it may need more memory than there is")
            waiting = lost[processes:]


def _pool(
    work: JobWork, jobs: Sequence[Job], processes: int
) -> Generator[tuple[Job, JobOutcome], None, list[Job]]:
    """Carry out jobs in so many processes; returns those that were lost when one of them was killed."""
    context = multiprocessing.get_context("spawn")
    gpus: Queue[str | None] = context.Queue()
    visible = _gpus()
    for number in range(processes):
        gpus.put(visible[number % len(visible)] if len(visible) > 1 else None)
    threads = max(1, torch.get_num_threads() // processes)
    pool = ProcessPoolExecutor(processes, context, _prepare, (gpus, threads))
    futures = {pool.submit(_interruptible, work, job): job for job in jobs}
    lost = set()
    try:
        for future in as_completed(futures):
            try:
                outcome = future.result()
            except BrokenProcessPool:
                lost.add(futures[future].name)
            else:
                yield futures[future], outcome
    except BaseException:
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGINT)
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return [job for job in jobs if job.name in lost]


def _gpus() -> list[str]:
    """The devices as CUDA_VISIBLE_DEVICES counts them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def _prepare(gpus: "Queue[str | None]", threads: int) -> None:
    """What a process does before its first job."""
    os.setsid()  # Ctrl-C reaches the parent alone, which tells us
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (gpu := gpus.get()) is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _interruptible(work: JobWork, job: Job) -> JobOutcome:
    """`work`, which an interrupt stops; between jobs there is nothing to stop."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return work(job)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@hookimpl
def stage1_executors() -> type[Executor]:
    return Local

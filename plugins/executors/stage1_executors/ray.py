"""A Ray cluster: `--on ray`, `--on ray://HOST:PORT`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from typing import Any

from pydantic import Field

from stage1 import ComponentConfig, Executor, Job, JobOutcome, JobWork, UsageError, hookimpl


class RayConfig(ComponentConfig):
    """Options of `ray`."""

    address: str | None = Field(
        None, description="Of the cluster; by default RAY_ADDRESS, a cluster on this machine, or a new one."
    )
    cpus: float = Field(1, gt=0, description="Cores for each run.")
    gpus: float | None = Field(
        None, ge=0, description="GPUs for each run, or a share of one; by default 1 where there are any."
    )
    jobs: int | None = Field(
        None, gt=0, description="Runs at a time; by default as many as there is room for."
    )
    retries: int = Field(3, ge=0, description="How often a run is begun again whose machine was lost.")


class Ray(Executor):
    """A Ray cluster of any size: a run is a task, and those of a lost node are resumed or repeated elsewhere.

    Every node needs the same packages and the model and data under the same paths. Nodes without the sweep's
    folder send their runs back. See https://docs.ray.io/en/latest/ray-core/fault_tolerance/tasks.html.
    """

    name = "ray"
    Config = RayConfig
    config: RayConfig

    def carry_out(self, work: JobWork, jobs: Sequence[Job]) -> Iterator[tuple[Job, JobOutcome]]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports home unless told otherwise
        try:
            import ray
        except ImportError:
            raise UsageError("--on ray: not installed.", 'Install it: pip install "stage1[ray]"') from None
        ours = not ray.is_initialized()
        if ours:
            self._connect(ray)
        try:
            with redirect_stdout(sys.stderr):  # it tells of lost nodes; the result is alone on stdout
                yield from self._tasks(ray, work, jobs)
        finally:
            if ours:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        address = self.config.address
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"The Ray cluster {address or ''} does not answer: {str(error).splitlines()[0]}",
                "Start one: ray start --head",
            ) from None

    def _tasks(self, ray: Any, work: JobWork, jobs: Sequence[Job]) -> Iterator[tuple[Job, JobOutcome]]:
        gpus = self.config.gpus
        if gpus is None:
            gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0))
        task = ray.remote(num_cpus=self.config.cpus, num_gpus=gpus, max_retries=self.config.retries)(work)
        waiting, going_on = list(jobs), dict[Any, Job]()
        try:
            while waiting or going_on:
                while waiting and len(going_on) < (self.config.jobs or len(jobs)):
                    job = waiting.pop(0)
                    going_on[task.remote(job)] = job
                [ended], _ = ray.wait(list(going_on), num_returns=1)
                yield going_on.pop(ended), _outcome(ray, ended)
        except BaseException:
            for reference in going_on:
                ray.cancel(reference)
            raise


def _outcome(ray: Any, ended: Any) -> JobOutcome:
    try:
        outcome: JobOutcome = ray.get(ended)
    except ray.exceptions.RayTaskError:  # an error of ours: with its traceback
        raise
    except ray.exceptions.RayError as error:
        return JobOutcome(f"Ray lost it: {str(error).splitlines()[0]}")
    return outcome


@hookimpl
def stage1_executors() -> type[Executor]:
    return Ray

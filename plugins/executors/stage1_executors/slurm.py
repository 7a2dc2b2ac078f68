"""Slurm: `--on slurm`, through submitit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field

from stage1 import ComponentConfig, Executor, Job, JobOutcome, JobWork, UsageError, hookimpl


class SlurmConfig(ComponentConfig):
    """Options of `slurm`."""

    jobs: int = Field(16, gt=0, description="Runs at a time, of one job array.")
    minutes: int = Field(
        60, gt=0, description="Time limit of a run; at the limit it is requeued and resumed."
    )
    cpus: int = Field(4, gt=0, description="Cores for each run.")
    gpus: int = Field(1, ge=0, description="GPUs for each run.")
    memory: int | None = Field(None, gt=0, description="GB for each run.")
    partition: str | None = Field(None, description="Slurm's partition.")
    account: str | None = Field(None, description="Slurm's account.")
    setup: list[str] = Field([], description="Shell lines before each run, such as `module load cuda`.")
    cluster: Literal["slurm", "local"] = Field(
        "slurm", description="`local`: submitit's processes of this machine, to try it without Slurm."
    )


class Requeued:
    """Work that submitit submits again where its time is up or its machine is wanted: the run resumes."""

    def __init__(self, work: JobWork) -> None:
        self.work = work

    def __call__(self, job: Job) -> JobOutcome:
        """Do it."""
        return self.work(job)

    def checkpoint(self, job: Job) -> object:
        """What is submitted again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


class Slurm(Executor):
    """A Slurm cluster: the sweep is a job array; runs that reach their time limit are requeued and resume.

    Every machine needs the sweep's folder, the packages, the model and the data under the same paths. The
    logs are in FOLDER/slurm. See https://github.com/facebookincubator/submitit.
    """

    name = "slurm"
    Config = SlurmConfig
    config: SlurmConfig

    def carry_out(self, work: JobWork, jobs: Sequence[Job]) -> Iterator[tuple[Job, JobOutcome]]:
        try:
            import submitit
            from submitit.core.utils import FailedJobError, UncompletedJobError
        except ImportError:
            raise UsageError(
                "--on slurm: not installed.", 'Install it: pip install "stage1[slurm]"'
            ) from None
        config = self.config
        try:
            executor = submitit.AutoExecutor(jobs[0].folder / "slurm", cluster=config.cluster)
        except RuntimeError as error:
            raise UsageError(f"--on slurm: {error}", "Run it where `sbatch` is.") from None
        executor.update_parameters(
            name="stage1",
            timeout_min=config.minutes,
            cpus_per_task=config.cpus,
            gpus_per_node=config.gpus,
            slurm_array_parallelism=config.jobs,
            **({"mem_gb": config.memory} if config.memory else {}),
            **({"slurm_partition": config.partition} if config.partition else {}),
            **({"slurm_account": config.account} if config.account else {}),
            **({"slurm_setup": config.setup} if config.setup else {}),
        )
        with executor.batch():
            submitted = {executor.submit(Requeued(work), job): job for job in jobs}
        try:
            for ended in submitit.helpers.as_completed(list(submitted), poll_frequency=1):
                failure = ended.exception()
                if isinstance(failure, FailedJobError):  # an error of ours: with its traceback
                    raise failure
                lost = isinstance(failure, UncompletedJobError)
                yield (
                    submitted[ended],
                    JobOutcome(f"Slurm lost it; see {ended.paths.stderr}") if lost else ended.result(),
                )
        except BaseException:
            for job in submitted:
                job.cancel()
            raise


@hookimpl
def stage1_executors() -> type[Executor]:
    return Slurm

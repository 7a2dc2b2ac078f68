"""Sweeps that are carried out elsewhere: the same plan, the same files, the same numbers."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from conftest import FEW, SMALL, Invoke, Notes, settings_args
from stage1 import Executor, Job, JobOutcome, JobWork, UsageError
from stage1.errors import ConfigError, Stage1Error
from stage1.files import read_record
from stage1.progress import Progress
from stage1.sweeps.grid import Axis, plan
from stage1.sweeps.sweep import Sweep
from stage1.sweeps.worker import executor, unpack

SETTINGS = (*SMALL, *FEW)
AXES = [Axis("compressor.ratio", [4, 16])]


def sweep(folder: Path, *, seeds: Sequence[int] = (0,)) -> Sweep:
    return Sweep(folder, AXES, plan({}, SETTINGS, AXES, seeds, folder))


def numbers(folder: Path) -> object:
    """What a sweep found, without where it lies."""
    record = read_record(folder / "sweep.json", "")
    return [(cell["settings"], cell["seed"], cell["results"], cell["error"]) for cell in record["cells"]]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The sweep in this process; its answers are cached for the others."""
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGE1_CACHE", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        sweep(folder / "s").run(Progress())
        yield folder / "s"


@pytest.mark.slow
def test_processes_find_the_same_and_resume_what_another_place_began(here: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    shutil.copytree(here, folder)
    [first, second] = sweep(folder).cells
    shutil.rmtree(second.run.path)
    (folder / ".here-left-by-a-kill").touch()
    sweep(folder).run(Progress(), executor(None, 2, {}))
    assert numbers(folder) == numbers(here)
    assert first.run.path.is_dir()
    assert not list(folder.glob(".*"))


def lethal(job: Job) -> JobOutcome:
    """Work that one job does not survive."""
    if "ratio=4 " in job.name + " ":
        os.kill(os.getpid(), signal.SIGKILL)
    return JobOutcome("was here")


@pytest.mark.slow
def test_a_killed_process_fails_its_own_run_alone(tmp_path: Path) -> None:
    jobs = [
        Job(cell.name, cell.config, cell.run.path, tmp_path, "", None) for cell in sweep(tmp_path / "s").cells
    ]
    place = executor("local", 2, {})
    assert place is not None
    ended = {job.name: outcome.error or "" for job, outcome in place.carry_out(lethal, jobs)}
    assert len(ended) == 2
    for name, error in ended.items():
        assert error.startswith("its process was killed" if "ratio=4 " in name else "was here")


class Elsewhere(Executor):
    """A machine without the sweep's storage."""

    name = "elsewhere"

    def carry_out(self, work: JobWork, jobs: Sequence[Job]) -> Iterator[tuple[Job, JobOutcome]]:
        for job in jobs:
            yield job, work(job._replace(folder=Path("/nowhere"), run=Path("/nowhere/run")))


def test_runs_come_back_from_a_machine_without_the_storage(here: Path, tmp_path: Path) -> None:
    sweep(tmp_path / "s").run(Progress(), Elsewhere(Elsewhere.Config()))
    assert numbers(tmp_path / "s") == numbers(here)
    assert not list((tmp_path / "s").glob(".*"))


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_nothing_comes_back_outside_of_the_run(name: str, tmp_path: Path) -> None:
    with pytest.raises(Stage1Error, match="outside"):
        unpack({name: b""}, tmp_path / "s" / "run")
    assert [path.name for path in tmp_path.rglob("*outside*")] == []


def test_what_is_wrong_with_a_place_is_said_before_anything_is_made(tmp_path: Path) -> None:
    assert executor(None, 1, {}) is None
    with pytest.raises(UsageError, match="Unknown executor 'rai'") as unknown:
        executor("rai", None, {})
    assert "'ray'" in str(unknown.value)
    with pytest.raises(ConfigError, match=r"--on slurm\.minute"):
        executor("slurm", None, {"minute": 3})
    with pytest.raises(ConfigError, match="address"):
        executor("local://host", None, {})
    with pytest.raises(UsageError, match="Name one by --on"):
        executor(None, None, {"minutes": 3})


def test_the_command_takes_a_place(here: Path, invoke: Invoke, tmp_path: Path) -> None:
    shutil.copytree(here, "s")
    command = ["sweep", "--over", "compressor.ratio=4,16", "--output", "s", *settings_args(SETTINGS)]
    assert "finished already" in invoke(*command, "--jobs", "2").err


@pytest.mark.slow
def test_an_interrupt_stops_the_processes_and_the_same_command_resumes(here: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stage1", "sweep", "--over", "compressor.ratio=4,16", "--output", "s"]
    command += [*settings_args(SETTINGS), "--jobs", "2"]
    begun = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not list((tmp_path / "s").glob("*/config.yaml")):
        time.sleep(0.05)
        assert begun.poll() is None, begun.communicate()
    begun.send_signal(signal.SIGINT)
    _, said = begun.communicate(timeout=120)
    assert begun.returncode == 130, said
    assert "Resume with the same `stage1 sweep` command" in said
    assert "Traceback" not in said
    sweep(tmp_path / "s").run(Progress())
    assert numbers(tmp_path / "s") == numbers(here)


# -- clusters ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ray_goes_on_where_a_node_is_lost(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes as processes of this machine; the one that works first is killed."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patient = {"health_check_timeout_ms": 60_000}  # a loaded machine is not a lost one
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": patient})
    try:
        nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
        place = executor("ray", None, {"address": cluster.address})
        assert place is not None
        folder = tmp_path / "s"

        class Killing(Notes):
            def note(self, message: str) -> None:
                super().note(message)
                if len(nodes) == 2 and message.endswith("done."):
                    cluster.remove_node(nodes.pop(), allow_graceful=False)

        grid = sweep(folder, seeds=(0, 1))
        progress = Killing()
        grid.run(progress, place)
        assert len(nodes) == 1
        assert grid.errors == {}
        done = [note for note in progress.notes if note.endswith("done.")]
        assert len(done) == len(set(done)) == 4
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]
    record = read_record(folder / "sweep.json", "")
    expected = sweep(tmp_path / "again", seeds=(0, 1))
    expected.run(Progress())
    assert [c["results"] for c in record["cells"]] == [c["results"] for c in expected.record()["cells"]]


@pytest.mark.slow
def test_slurm_jobs_are_submitits(here: Path, tmp_path: Path) -> None:
    """submitit's own processes stand in for Slurm's."""
    pytest.importorskip("submitit")
    options = {"cluster": "local", "gpus": 0, "minutes": 10}
    sweep(tmp_path / "s").run(Progress(), executor("slurm", None, options))
    assert numbers(tmp_path / "s") == numbers(here)
    assert list((tmp_path / "s" / "slurm").rglob("*.err"))

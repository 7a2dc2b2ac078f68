"""The run directory: whole files or none, no two programs at once, logs that survive a kill."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import full_disk, small_config
from stage1.errors import Stage1Error, UsageError
from stage1.experiment import train_run
from stage1.files import TEMPORARY, temporary_prefix, to_json, write_atomic
from stage1.progress import Progress
from stage1.runs.run import METRICS, Run


def new_run(path: Path) -> Run:
    return Run.create(small_config(f"output={path}"))


def test_the_stored_configuration_is_the_one_given(tmp_path: Path) -> None:
    config = small_config(f"output={tmp_path / 'run'}", "compressor.dim=7", "losses.cosine=0.5")
    assert Run.create(config).config == config


def test_default_folders_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = Run.create(small_config()), Run.create(small_config())
    assert first.path.name.endswith("-pca-residual-1")
    assert second.path.name.endswith("-pca-residual-2")
    assert Run.latest().path == second.path


def test_a_second_program_is_kept_out(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from stage1.runs.run import Run\n"
        "with Run(Path(sys.argv[1])).lock(): pass"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    with run.lock():
        other = subprocess.run(command, capture_output=True, text=True, check=False)
        assert other.returncode != 0
        assert "Another process is working" in other.stderr
    with Run(run.path).lock():
        pass


def test_a_failed_write_leaves_the_old_content_and_no_debris(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with full_disk(4096), pytest.raises(Stage1Error, match=r"(?s)Cannot write.*Free some space"):
        write_atomic(path, bytes(10_000))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_log_cut_short_by_a_kill_is_read_up_to_there(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    assert run.metrics() == []
    assert run.best_selection() == {}
    entries = [{"step": step, "selection": {"score": 0.5}} for step in range(3)]
    lines = [json.dumps(entry) for entry in entries]
    (run.path / METRICS).write_text("\n".join([*lines[:2], lines[2][:-9]]))
    assert run.metrics() == entries[:2]
    strange = ['{"step": "1"}', "[]", "[" * 9999, lines[1], '{"step": 1, "selection": 2}']
    (run.path / METRICS).write_text("\n".join(strange))
    assert run.metrics() == entries[1:2]


def test_what_is_no_run_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Run.open(tmp_path / "nothing")
    with pytest.raises(UsageError, match="holds no run"):
        Run.open(tmp_path)


def test_json_refuses_what_json_cannot_say() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"f1": float("nan")})


def test_what_a_killed_writer_left_is_removed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(small_config(f"output={tmp_path / 'run'}"))
    killed = subprocess.Popen(["true"])
    killed.wait()
    ours = run.path / "state" / f"{temporary_prefix(run.path)}x7{TEMPORARY}"
    leftover = ours.with_name(ours.name.replace(str(os.getpid()), str(killed.pid)))
    for path in (ours, leftover):
        path.write_bytes(b"half")
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "1")
        with run.lock():
            assert leftover.exists()  # the first process may be writing it
    with run.lock():
        assert not leftover.exists()
        assert ours.exists()  # whoever writes it lives
    assert (run.path / "config.yaml").exists()


def test_a_folder_that_is_taken_is_refused_before_any_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr("stage1.experiment.Session.open", refuse)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    (tmp_path / "file").write_text("no folder")
    new_run(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for taken, told in (("letters", "is not empty"), ("file", "is not a folder"), ("run", "--resume")):
        for create in (new_run, lambda path: train_run(small_config(f"output={path}"), Progress())):
            with pytest.raises(UsageError, match=told):
                create(tmp_path / taken)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(AssertionError, match="loaded"):
        train_run(small_config(f"output={tmp_path / 'empty'}"), Progress())

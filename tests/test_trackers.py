"""`--log-with`: TensorBoard and Weights & Biases are told what metrics.jsonl and results.json say."""

import importlib.util
import json
import logging
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing import event_accumulator
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

from conftest import FEW, NARROW, SMALL, CtrlC, Invoke, Kill, Killed, refused, settings_args, small_config
from plugin_sites import Site
from stage1.cli import main
from stage1.config import RunConfig, flat
from stage1.experiment import evaluate_run, train_run
from stage1.plugins import load_plugins
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.training.phases import FIRST

Scalars = dict[str, dict[int, float]]
"""Name → step → value."""


@pytest.fixture(autouse=True, scope="module")
def _offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        yield


def tracked(path: Path, *settings: str, log_with: str = "tensorboard, wandb") -> RunConfig:
    more = (NARROW, "train.save_every=15", "eval.limit=6", f"log_with=[{log_with}]", f"output={path}")
    return small_config(*more, *settings)


# -- what was logged ----------------------------------------------------------------------------------


def tensorboard(run: Path) -> Scalars:
    events = event_accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def recordings(run: Path) -> list[Path]:
    """What Weights & Biases recorded offline, in order; it keeps a link to the last one."""
    found = {path.resolve() for path in run.glob("wandb/*/run-*.wandb")}
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def records(recording: Path) -> list[Record]:
    """The records of one, whose end is written some milliseconds after the tracker was told to finish."""
    deadline = time.monotonic() + 30
    while True:
        found = list(parse(recording.read_bytes()))
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        assert time.monotonic() < deadline, f"{recording} has no end"
        time.sleep(0.01)


def parse(data: bytes) -> Iterator[Record]:
    """The records in LevelDB's log format: blocks of 32 KiB, the first behind a header of 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4) and at <= len(data):  # whole, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def wandb(recording: Path) -> Scalars:
    found: Scalars = {}
    for record in records(recording):
        if record.WhichOneof("record_type") == "history":
            items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            step = items.pop("_step")
            for name, value in items.items():
                if not name.startswith("_"):
                    found.setdefault(name, {})[step] = value
    return found


def logged(run: Run) -> Scalars:
    """The numbers in metrics.jsonl and results.json under the names that they should have."""
    entries = run.metrics()
    said = [(entry.pop("step"), flat(entry, "/")) for entry in map(dict, entries)]
    if (results := run.read_results()) is not None:
        rows = {row["row"]: row for row in results["rows"]}
        others = {key: results[key] for key in ("rate", "reconstruction")}
        said.append((entries[-1]["step"], flat({"eval": {**rows, **others}}, "/")))
    found: Scalars = {}
    for step, values in said:
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault(name, {})[step] = value
    return found


def assert_equal(found: Scalars, expected: Scalars, tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, points in expected.items():
        assert found[name] == pytest.approx(points, rel=tolerance), name


# -- whole runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with several terms, evaluated, told to both."""
    path = tmp_path_factory.mktemp("both") / "run"
    return train_run(tracked(path, "losses.recon=1", "losses.cosine=0.1"), Progress()).run


def test_tensorboard_has_the_numbers_of_the_log_and_of_the_results(both: Run) -> None:
    found = tensorboard(both.path)
    assert_equal(found, logged(both))
    assert found["terms/recon/value"].keys() == {10, 20, 30, 40}
    assert found["eval/bottleneck/f1"].keys() == {40}
    [configuration] = both.path.glob("tensorboard/*/hparams.yml")
    assert "compressors.0.ratio: 8" in configuration.read_text()


def test_wandb_records_the_same_without_network(both: Run) -> None:
    [recording] = recordings(both.path)
    assert_equal(wandb(recording), logged(both), tolerance=0)
    [described] = [r.run for r in records(recording) if r.WhichOneof("record_type") == "run"]
    assert (described.project, described.display_name) == ("stage1", "run")
    settings = {item.key: json.loads(item.value_json) for item in described.config.update}
    assert settings["compressors.0.name"] == "pca"
    assert settings["losses.cosine.weight"] == 0.1
    assert settings["data.max_prompt_tokens"] is None
    assert json.loads(settings["log_with"]) == ["tensorboard", "wandb"]


def test_a_later_evaluation_is_not_logged(both: Run) -> None:
    before = sorted(both.path.glob("tensorboard/*")), recordings(both.path)
    evaluate_run(both, {"eval.limit": 3}, Progress())
    assert (sorted(both.path.glob("tensorboard/*")), recordings(both.path)) == before


def test_a_resumed_run_is_one_run_to_the_trackers(tmp_path: Path) -> None:
    config = tracked(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train_run(config, CtrlC("Training", 24), with_evaluation=False)
    run = Run(tmp_path / "run")
    train_run(config, Progress(), resume=run, with_evaluation=False)
    assert_equal(tensorboard(run.path), logged(run))
    first, second = recordings(run.path)
    assert first.name == second.name  # run-<id>.wandb
    assert [wandb(part)["selection/recon"].keys() for part in (first, second)] == [{0, 10, 20}, {30, 40}]


def test_tensorboard_drops_what_a_killed_run_had_logged_beyond_its_state(tmp_path: Path) -> None:
    config = tracked(tmp_path / "run", log_with="tensorboard")
    killed = Kill("Solving the last layer", 0)  # after step 40; the last state is that after step 30
    with pytest.raises(Killed):
        train_run(config, killed, with_evaluation=False)
    run = Run(tmp_path / "run")
    assert tensorboard(run.path)["selection/recon"].keys() == {0, 10, 20, 30, 40}
    resumed = tracked(tmp_path / "run", "train.steps=32", log_with="tensorboard")
    train_run(resumed, Progress(), resume=run, with_evaluation=False)
    assert [entry["step"] for entry in run.metrics()] == [0, 10, 20, 30, 32, 32]
    assert_equal(tensorboard(run.path), logged(run))


def test_two_phases_are_two_runs_to_the_trackers(tmp_path: Path) -> None:
    then = ("compressor.ratio=32", "then.losses.recon=1", "then.train.steps=10", "then.below=1")
    run = train_run(tracked(tmp_path / "run", *then), Progress(), with_evaluation=False).run
    for phase in (Run(run.path / FIRST), run):
        [recording] = recordings(phase.path)
        assert_equal(wandb(recording), logged(phase), tolerance=0)
        assert_equal(tensorboard(phase.path), logged(phase))


@pytest.mark.parametrize("broken", ["tensorboard", "wandb"])
def test_a_tracker_that_cannot_start_stops_neither_the_run_nor_the_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    run = Run.create(tracked(tmp_path / "run", "train.steps=10"))
    (run.path / broken).write_text("A file is where its folder should be.")
    load_plugins.cache_clear()  # each process reports a plugin once
    with caplog.at_level(logging.WARNING, logger="stage1.plugins"):
        train_run(run.config, Progress(), resume=run, with_evaluation=False)
    [message] = [record.getMessage() for record in caplog.records if record.name == "stage1.plugins"]
    assert f"The plugin {broken} of stage1" in message
    assert "The run continues." in message
    found = wandb(recordings(run.path)[0]) if broken == "tensorboard" else tensorboard(run.path)
    assert_equal(found, logged(run))


# -- a stranger's ------------------------------------------------------------------------------------

LINES = """
    import json
    from stage1 import Tracker, hookimpl

    class Lines(Tracker):
        "A line for each measurement."
        name = "lines"

        def start(self, run, settings, step):
            self.path = run / "lines.txt"
            self.path.write_text(settings["adapter.name"] + "\\n")

        def log(self, numbers, step):
            with self.path.open("a") as file:
                file.write(f"{step} {sorted(numbers)[0]}\\n")

    class Broken(Lines):
        "Starts and then raises."
        name = "broken"

        def log(self, numbers, step):
            raise OSError("no disk")

    @hookimpl
    def stage1_trackers():
        return [Lines, Broken]
"""


def test_a_strangers_tracker(site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site.install("strange", {"point": LINES})
    config = tracked(tmp_path / "run", "train.steps=10", log_with="broken, lines")
    with caplog.at_level(logging.WARNING, logger="stage1.plugins"):
        run = train_run(config, Progress()).run
    first, *measured, closing = (run.path / "lines.txt").read_text().splitlines()
    assert first == "residual"
    assert [int(line.split()[0]) for line in measured] == [entry["step"] for entry in run.metrics()]
    assert closing == f"{measured[-1].split()[0]} eval/bottleneck/answers_cut"
    said = [record.getMessage() for record in caplog.records if record.name == "stage1.plugins"]
    assert said[0] == (
        "The plugin broken of strange 1.2: it raised at stage1_step: OSError: no disk. The run continues."
    )
    assert len(said) == 2  # once an event


# -- the option ---------------------------------------------------------------------------------------


def test_the_flag_keeps_standard_output_for_the_result(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a tracker's own processes write is in it, too."""
    run = str(tmp_path / "run")
    settings = settings_args([*SMALL, "train.steps=4"])
    trackers = (f"--log-with={name}" for name in ("wandb", "tensorboard", "wandb"))
    arguments = ["train", "--no-eval", "--json", "--output", run, *settings, *trackers]
    monkeypatch.setattr(sys, "argv", ["stage1", *arguments])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert json.loads(capfd.readouterr().out)["run"] == run


def test_the_flag_reaches_every_run_of_a_sweep(tmp_path: Path, invoke: Invoke) -> None:
    settings = settings_args([*SMALL, *FEW])
    over = ("--over", "compressor.ratio=4,8", "--output", "grid", "-q")
    assert invoke("sweep", *over, *settings, "--log-with", "tensorboard").printed
    runs = [path.parent for path in (tmp_path / "grid").glob("*/config.yaml")]
    assert len(runs) == 2
    assert all("eval/bottleneck/f1" in tensorboard(run) for run in runs)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tensorbord", "Did you mean 'tensorboard'? Choices: tensorboard, wandb."),
        ("wandb", 'Error: --log-with wandb: not installed.\nInstall it: pip install "stage1[wandb]"\n'),
    ],
)
@pytest.mark.parametrize("command", [("train",), ("sweep", "--over", "compressor.ratio=4,8")])
def test_a_tracker_that_cannot_be_used_is_refused_before_anything_is_written(
    tmp_path: Path,
    invoke: Invoke,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    name: str,
    said: str,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, p=None: None if n == "wandb" else find(n, p))
    refused(invoke(*command, "--log-with", name, "--log-with", "tensorboard", "--output", "out"), said)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_trackers_that_nobody_asked_for_are_not_imported() -> None:
    code = (
        "import atexit, runpy, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "runpy.run_module('stage1', run_name='__main__', alter_sys=True)"
    )
    program = [sys.executable, "-c", code, "plugins", "list"]
    result = subprocess.run(program, capture_output=True, text=True, check=True)
    modules = set(result.stderr.split())
    assert not modules & {"tensorboard", "torch.utils.tensorboard", "wandb"}
    assert "stage1_loggers.wandb" in modules

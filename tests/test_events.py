"""Events: listeners hear them one by one, and none can stop a run."""

import json
import logging
import shutil
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from conftest import NARROW, SMALL, CtrlC, Invoke, full_disk, settings_args, small_config
from plugin_sites import HOOK, Site, of
from stage1.config import RunConfig
from stage1.errors import TrainingError, UsageError
from stage1.experiment import evaluate_run, train_run
from stage1.plugins import load_plugins
from stage1.progress import Progress
from stage1.runs.run import METRICS, Run
from stage1.training.phases import FIRST
from trainings import same, weights

LISTENER = '''
    """Writes down what it hears."""
    import stage1
    heard = []

    @stage1.hookimpl
    def stage1_step(step, metrics):
        heard.append((step, metrics))

    @stage1.hookimpl
    def stage1_run_end(run, status):
        heard.append(status)
'''


def test_listeners_hear_events_with_the_facts_they_ask_for(site: Site, tmp_path: Path) -> None:
    site.install("ears", {"point": LISTENER})
    registry = site.load()
    [record] = of(registry, "ears")
    assert (record.name, record.kind, record.summary) == ("point", "events", "Writes down what it hears.")
    registry.emit("stage1_step", run=tmp_path, step=3, metrics={"loss": 1.0})
    registry.emit("stage1_run_end", run=tmp_path, status="done")
    registry.emit("stage1_run_start", run=tmp_path, config=RunConfig(), step=0)
    assert sys.modules["ears__point"].heard == [(3, {"loss": 1.0}), "done"]


@pytest.mark.parametrize("fault", ["1 / 0", "raise SystemExit(1)", "print('x'); raise OSError('full')"])
def test_a_listener_that_raises_neither_stops_the_run_nor_the_others(
    site: Site,
    tmp_path: Path,
    fault: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    site.install("early", {"point": LISTENER})
    site.install("grumpy", {"point": HOOK + f"def stage1_step(step):\n    {fault}\n"}, release="4.5")
    site.install("late", {"point": LISTENER})
    registry = site.load()
    with caplog.at_level(logging.WARNING, logger="stage1.plugins"):
        for step in (1, 2):
            registry.emit("stage1_step", run=tmp_path, step=step, metrics={})
    assert sys.modules["early__point"].heard == [(1, {}), (2, {})]
    assert sys.modules["late__point"].heard == [(1, {}), (2, {})]
    [message] = [record.getMessage() for record in caplog.records]
    assert "grumpy 4.5" in message
    assert "stage1_step raised" in message
    [record] = of(registry, "grumpy")
    assert record.status == "failed"
    assert "stage1_step raised" in record.reason
    assert capsys.readouterr().out == ""


def test_a_plugin_refused_for_one_hook_is_not_called_for_its_others(site: Site, tmp_path: Path) -> None:
    site.install("refused", {"point": dedent(LISTENER) + "\n@stage1.hookimpl\ndef stage1_run_edn(): pass\n"})
    registry = site.load()
    assert [record.status for record in of(registry, "refused")] == ["failed"]
    registry.emit("stage1_run_end", run=tmp_path, status="done")
    assert sys.modules["refused__point"].heard == []


def test_ctrl_c_in_a_listener_stops_the_run(site: Site, tmp_path: Path) -> None:
    site.install("slow", {"point": HOOK + "def stage1_run_end(): raise KeyboardInterrupt\n"})
    with pytest.raises(KeyboardInterrupt):
        site.load().emit("stage1_run_end", run=tmp_path, status="done")


def test_an_event_sent_with_wrong_facts_is_our_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="stage1_run_end"):
        load_plugins().emit("stage1_run_end", run=tmp_path)


# -- the events of a run ------------------------------------------------------------------------------

WITNESS = '''
    """Writes down everything, in order."""
    import json
    import stage1
    heard = []

    @stage1.hookimpl
    def stage1_run_start(run, config, step):
        heard.append((run.name, "start", step))

    @stage1.hookimpl
    def stage1_step(run, step, metrics):
        assert metrics["step"] == step
        heard.append((run.name, "step", step))

    @stage1.hookimpl
    def stage1_evaluated(run, results):
        written = json.loads((run / "results.json").read_text())
        assert written.pop("sha256") and written.pop("files")
        heard.append((run.name, "evaluated", results == written))

    @stage1.hookimpl
    def stage1_run_end(run, status):
        heard.append((run.name, "end", status))
'''

Heard = list[tuple[str, str, Any]]


def plugged(site: Site, name: str, source: str) -> Any:
    """The module of a plugin that `train_run` finds."""
    site.install(name, {"point": source})
    load_plugins()
    return sys.modules[f"{name}__point"]


@pytest.fixture
def heard(site: Site) -> Any:
    return plugged(site, "witness", WITNESS).heard


def small_run(folder: Path, *settings: str) -> RunConfig:
    few = ("train.save_every=15", "eval.limit=6", NARROW)
    return small_config(*few, f"output={folder / 'run'}", *settings)


def steps(*numbers: int) -> Heard:
    return [("run", "step", number) for number in numbers]


BEGUN, DONE = ("run", "start", 0), ("run", "end", "done")
EVALUATED = ("run", "evaluated", True)


def test_a_run_ends_after_its_evaluation(heard: Heard, tmp_path: Path) -> None:
    run = train_run(small_run(tmp_path), Progress()).run
    assert heard == [BEGUN, *steps(0, 10, 20, 30, 40, 40), EVALUATED, DONE]
    assert [entry["step"] for entry in run.metrics()] == [0, 10, 20, 30, 40, 40]
    heard.clear()
    evaluate_run(run, {}, Progress())
    assert heard == [EVALUATED]


def test_an_interrupted_run_goes_on_after_the_step_it_came_to(heard: Heard, tmp_path: Path) -> None:
    config = small_run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_run(config, CtrlC("Training", 24), with_evaluation=False)
    assert heard == [BEGUN, *steps(0, 10, 20), ("run", "end", "interrupted")]
    lost = Run(shutil.copytree(tmp_path / "run", tmp_path / "lost"))
    heard.clear()
    run = train_run(config, Progress(), resume=Run(tmp_path / "run"), with_evaluation=False).run
    assert heard == [("run", "start", 24), *steps(30, 40, 40), DONE]
    whole = small_config("train.save_every=15", NARROW, f"output={tmp_path / 'whole'}")
    other = train_run(whole, Progress(), with_evaluation=False).run
    assert (run.path / METRICS).read_bytes() == (other.path / METRICS).read_bytes()
    (lost.path / METRICS).unlink()  # nor does it need its log
    train_run(config, Progress(), resume=lost, with_evaluation=False)
    assert [entry["step"] for entry in lost.metrics()] == [30, 40, 40]
    assert same(weights(lost), weights(run))


def test_an_interrupted_evaluation_is_made_up_for(heard: Heard, tmp_path: Path) -> None:
    config = small_run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_run(config, CtrlC("Evaluating bottleneck", 1))
    assert heard[-2:] == [*steps(40), ("run", "end", "interrupted")]
    log = (tmp_path / "run" / METRICS).read_bytes()
    heard.clear()
    train_run(config, Progress(), resume=Run(tmp_path / "run"))
    assert heard == [("run", "start", 40), EVALUATED, DONE]
    assert (tmp_path / "run" / METRICS).read_bytes() == log


def test_a_run_that_failed_says_so(heard: Heard, tmp_path: Path) -> None:
    config = small_run(tmp_path, "train.lr=1e30", "train.warmup=0")
    with pytest.raises(TrainingError):
        train_run(config, Progress())
    assert heard == [BEGUN, *steps(0), ("run", "end", "failed")]


def test_a_run_that_cannot_be_resumed_never_begins(heard: Heard, tmp_path: Path) -> None:
    run = Run.create(small_run(tmp_path))
    (run.path / "state" / "state.safetensors").write_bytes(b"half")
    with pytest.raises(UsageError, match="damaged"):
        train_run(run.config, Progress(), resume=run, with_evaluation=False)
    assert heard == []


def test_the_first_phase_is_a_run_within_the_run(heard: Heard, tmp_path: Path) -> None:
    settings = ("then.losses.recon=auto", "then.train.steps=10", "then.below=1")
    config = small_run(tmp_path, "compressor.ratio=32", *settings)
    train_run(config, Progress(), with_evaluation=False)
    first = [(FIRST, "start", 0), *((FIRST, *event[1:]) for event in steps(0, 10, 20, 30, 40, 40))]
    assert heard == [BEGUN, *first, (FIRST, "end", "done"), *steps(0, 10, 10), DONE]


def test_ctrl_c_in_the_first_listener_reaches_the_others_too(site: Site, tmp_path: Path) -> None:
    impatient = HOOK + "def stage1_run_start(): raise KeyboardInterrupt\n"
    site.install("impatient", {"point": impatient})
    witness = plugged(site, "witness", WITNESS)
    with pytest.raises(KeyboardInterrupt):
        train_run(small_run(tmp_path), Progress(), with_evaluation=False)
    assert witness.heard == [("run", "end", "interrupted")]


# -- metrics.jsonl ------------------------------------------------------------------------------------


def test_the_log_forgets_what_is_measured_again(tmp_path: Path) -> None:
    registry, run = load_plugins(), Run(tmp_path)

    def log(step: int) -> None:
        registry.emit("stage1_step", run=tmp_path, step=step, metrics={"step": step})

    for step in range(4):
        log(step)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 4, "lo')
    registry.emit("stage1_run_start", run=tmp_path, config=RunConfig(), step=1)
    assert [entry["step"] for entry in run.metrics()] == [0, 1]
    log(2)
    assert (tmp_path / METRICS).read_text() == '{"step": 0}\n{"step": 1}\n{"step": 2}\n'
    registry.emit("stage1_run_start", run=tmp_path, config=RunConfig(), step=0)
    log(0)
    assert run.metrics() == [{"step": 0}]


def test_a_full_disk_costs_the_log_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The second entry does not fit."""
    load_plugins.cache_clear()  # each process reports a plugin once
    registry = load_plugins()
    with full_disk(100), caplog.at_level(logging.WARNING, logger="stage1.plugins"):
        for step in range(4):
            entry = {"step": step, "what": "x" * 50}
            registry.emit("stage1_step", run=tmp_path, step=step, metrics=entry)
    [line] = [record.getMessage() for record in caplog.records]
    assert "jsonl of stage1" in line
    assert "File too large. The run continues." in line
    assert [entry["step"] for entry in Run(tmp_path).metrics()] == [0]


def test_the_chosen_checkpoint_does_not_depend_on_the_log(site: Site, tmp_path: Path, invoke: Invoke) -> None:
    thief = HOOK + f"def stage1_step(run):\n    (run / {METRICS!r}).unlink()\n"
    few = (*SMALL, "eval.limit=6", "train.steps=20", NARROW)
    phases = ("compressor.ratio=32", "then.losses.recon=1", "then.below=0.001")
    arguments = ("train", "--no-eval", *settings_args([*few, *phases]), "--output")
    kept = invoke(*arguments, "kept")
    plugged(site, "thief", thief)
    lost, as_json = invoke(*arguments, "lost"), invoke(*arguments, "json", "--json", "-q")
    assert "Trained; there is no log of how well." in lost.printed
    assert json.loads(as_json.printed) == {"run": "json", "selection": None, "timings": {}}
    assert "Trained; selection score 0." in kept.printed
    assert same(weights(tmp_path / "lost"), weights(tmp_path / "kept"))
    assert not (tmp_path / "lost" / METRICS).exists()
    assert (tmp_path / "kept" / METRICS).exists()

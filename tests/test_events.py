"""Events: listeners hear them one by one, and none can stop a run."""

import logging
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from plugin_sites import HOOK, Site, of
from stage1.config import RunConfig
from stage1.plugins import (
    load_plugins,
)

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
    registry.emit("stage1_run_start", run=tmp_path, config=RunConfig())
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

"""Hooks: who implements which, in what order, and the folders of tasks that one of them gives."""

import logging
import sys
from pathlib import Path

import pytest

from conftest import small_config
from plugin_sites import Site, compressor, of
from stage1.plugins import Owner, load_plugins
from stage1.plugins import hooks as specifications

# -- task folders -------------------------------------------------------------------------------------

TASKS = '''
    """Tasks of one's own."""
    from pathlib import Path
    import stage1

    @stage1.hookimpl
    def stage1_tasks():
        return {folders}
'''


def test_task_folders_are_found_with_their_package_and_stage1s_come_first(site: Site, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "task.yaml").write_text("task: mine\n")
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    (tmp_path / "empty").mkdir()
    site.install("b-tasks", {"point": TASKS.format(folders=f"Path({str(three)!r})")})
    several = f"[Path({str(one)!r}), Path({str(tmp_path / 'empty')!r}), Path({str(two)!r})]"
    site.install("a-tasks", {"mine": TASKS.format(folders=several)}, release="3.0")
    registry = site.load()
    own, *others = registry.task_folders()
    assert own[0].distribution == "stage1"
    assert own[1].name == "tasks"
    assert list(own[1].glob("*.yaml"))
    assert others == [
        (Owner("a-tasks", "3.0"), one),
        (Owner("a-tasks", "3.0"), two),
        (Owner("b-tasks", "1.2"), three),
    ]
    first, empty, second = of(registry, "a-tasks")
    assert (first.name, first.kind, first.summary) == ("mine", "tasks", "Tasks of one's own.")
    assert (second.status, second.reason) == ("ok", "")
    assert (empty.status, empty.folder) == ("failed", None)
    assert "holds no .yaml file" in empty.reason
    assert all(set(map(type, r.as_dict().values())) == {str} for r in registry.components)


# -- who implements what ------------------------------------------------------------------------------

EVERYTHING = (
    compressor("keep")
    + """
from pathlib import Path
from stage1 import Adapter, Dataset, Executor, Loss, Model, Tracker

heard = []

def made(base, name, **methods):
    return type(name.title(), (base,), {"name": name, **methods})

@hookimpl
def stage1_adapters():
    return made(Adapter, "back", forward=lambda self, code: code.vectors)

@hookimpl
def stage1_losses():
    return [made(Loss, "nought", forward=lambda self, inputs: inputs.reconstruction.sum() * 0)]

@hookimpl
def stage1_datasets():
    return made(Dataset, "nothing", records=lambda self, split, at_least: [])

@hookimpl
def stage1_models():
    return made(Model, "here", path=lambda self: Path(__file__).parent)

@hookimpl
def stage1_trackers():
    def start(self, run, settings, step):
        heard.append(settings["compressors.0.name"])

    return made(Tracker, "diary", start=start, log=lambda self, numbers, step: heard.append(numbers))

@hookimpl
def stage1_executors():
    return made(Executor, "anywhere", carry_out=lambda self, work, jobs: iter(()))

@hookimpl
def stage1_tasks():
    return Path(__file__).parent / "whole_tasks"

@hookimpl
def stage1_commands(app):
    app.command("greet")(lambda: heard.append("greeted"))

@hookimpl
def stage1_run_start(step):
    heard.append(step)

@hookimpl
def stage1_step(run, step, metrics):
    heard.append(metrics)

@hookimpl
def stage1_evaluated(results):
    heard.append(results)

@hookimpl
def stage1_run_end():
    heard.append("end")
"""
)


def test_one_module_may_implement_every_hook(site: Site, tmp_path: Path) -> None:
    (site.folder / "whole_tasks").mkdir()
    (site.folder / "whole_tasks" / "a.yaml").write_text("task: a\n")
    site.install("Whole_Set", {"all": EVERYTHING}, release="7.0")
    registry = site.load()
    owner = Owner("Whole_Set", "7.0")
    assert [(r.kind, r.name, r.status) for r in of(registry, "Whole_Set")] == [
        ("compressor", "keep", "ok"),
        ("adapter", "back", "ok"),
        ("loss", "nought", "ok"),
        ("dataset", "nothing", "ok"),
        ("model", "here", "ok"),
        ("tracker", "diary", "ok"),
        ("executor", "anywhere", "ok"),
        ("tasks", "all", "ok"),
        ("command", "greet", "ok"),
        ("events", "all", "ok"),
    ]
    for hook in registry.hooks():
        assert hook.implementers[-1] == ("all", owner), hook.name  # after all of stage1's own
        assert hook.implementers.count(("all", owner)) == 1
    told = small_config("log_with=[diary]")
    registry.emit("stage1_run_start", run=tmp_path, config=told, step=40)
    registry.emit("stage1_run_end", run=tmp_path, status="done")
    assert registry.get("adapter", "whole-set:back").__name__ == "Back"
    assert sys.modules["whole_set__all"].heard == [40, "pca", "end"]


def test_every_hook_is_listed_in_its_order_with_all_who_implement_it(site: Site) -> None:
    site.install("several", {"b": compressor("b1"), "a": compressor("a1")}, release="0.4")
    again = "\n@hookimpl(specname='stage1_compressors')\ndef more():\n    return []\n"
    site.install("twice", {"point": compressor("t1") + again})
    hooks = {hook.name: hook for hook in site.load().hooks()}
    assert list(hooks) == [name for name in vars(specifications) if name.startswith("stage1_")]
    assert list(hooks)[:3] == ["stage1_compressors", "stage1_adapters", "stage1_losses"]
    assert all(hook.summary for hook in hooks.values())
    implementers = hooks["stage1_compressors"].implementers
    assert ("pca", load_plugins().owner(load_plugins().get("compressor", "pca"))) in implementers
    assert implementers[-4:] == [
        ("a", Owner("several", "0.4")),
        ("b", Owner("several", "0.4")),
        ("point", Owner("twice", "1.2")),
        ("point", Owner("twice", "1.2")),
    ]
    assert hooks["stage1_commands"].implementers == []


def test_listeners_may_ask_to_be_first_or_last(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, mark in (("a", "(trylast=True)"), ("b", ""), ("c", "(tryfirst=True)")):
        source = f"import logging, stage1\n@stage1.hookimpl{mark}\n"
        site.install(
            name, {"point": source + f"def stage1_run_end(): logging.getLogger('order').warning({name!r})\n"}
        )
    registry = site.load()
    [hook] = [hook for hook in registry.hooks() if hook.name == "stage1_run_end"]
    assert [o.distribution for _, o in hook.implementers if o.distribution != "stage1"] == ["c", "b", "a"]
    with caplog.at_level(logging.WARNING, logger="order"):
        registry.emit("stage1_run_end", run=tmp_path, status="done")
    assert [record.getMessage() for record in caplog.records] == ["c", "b", "a"]

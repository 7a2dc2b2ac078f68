"""Which lm-eval tasks there are: lm-eval's own, stage1's and those of plugins, found by name.

lm-eval takes seconds to read its 14,000 task files, so what they are called is kept under the cache folder.
Names are given out in a fixed order: stage1's first, then lm-eval's, then those of plugins, so that no
package changes what a known name means.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stage1.errors import Stage1Error, UsageError
from stage1.files import default_cache, expanded, write_json
from stage1.plugins import Registry
from stage1.progress import Progress

LM_EVAL = f"lm-eval {version('lm-eval')}"


Kind = Literal["task", "group", "tag"]


class Task(NamedTuple):
    """A task, a group of tasks with a common score, or a tag that stands for several tasks."""

    name: str
    kind: Kind
    source: str  # the package and its version
    path: Path | None  # of its file; a tag has none
    members: tuple[str, ...]  # of a group or tag, as far as they are named
    hidden_by: str = ""  # the source whose task of that name it is; this one is used by its path

    def as_dict(self) -> dict[str, Any]:
        """The task for JSON."""
        return {**self._asdict(), "path": str(self.path) if self.path else None}


class Selection(NamedTuple):
    """Tasks as `lm_eval.simple_evaluate(tasks=…, task_manager=…)` takes them."""

    manager: Any  # lm_eval.tasks.TaskManager
    tasks: list[str]


def select(
    requested: Sequence[str],
    registry: Registry,
    progress: Progress,
    metadata: Mapping[str, Any] | None = None,
) -> Selection:
    """The tasks that a user asks for.

    Args:
        requested: names of tasks, groups and tags; patterns such as `arc_*`, which stand for tasks, or for
            groups and tags where no task matches; paths of task files.
        registry: knows the folders of tasks.
        progress: told when lm-eval's own task files have to be read, and of a plugin's task that is hidden.
        metadata: for the tasks that take settings, as lm-eval's `--metadata`.

    Raises:
        UsageError: a name, pattern or file that is none, or two tasks of one name.
    """
    for text in filter(_is_path, requested):
        progress.note(f"{text} is code: its !function entries and templates run with your rights.")
    files = {text: _file(expanded(text)) for text in requested if _is_path(text)}
    names = [text for text in requested if text not in files]
    brought = _brought(registry)
    ours = {task.name for task in brought if _is_ours(task)}
    self_sufficient = ours.issuperset(names) and all(file.kind == "task" for file in files.values())
    tasks = _ranked(brought, [] if self_sufficient else _lm_eval(progress))
    known = {task.name: task for task in tasks if not task.hidden_by}
    for file in files.values():
        if file.kind == "group":
            known = {**_beside(file), **known}
            _refuse_unknown([name for name in file.members if name not in known], known, f" in {file.source}")
    chosen = {text: [text] if text in files else _matching(text, known) for text in dict.fromkeys(requested)}
    _refuse_unknown([text for text, matches in chosen.items() if not matches], known)
    specs = list(dict.fromkeys(spec for matches in chosen.values() for spec in matches))
    _refuse_namesakes(specs, files)
    for task in tasks:
        if task.hidden_by and task.name in specs:
            progress.note(hint(task))
    return Selection(_manager({**known, **files}, metadata), specs)


def find(pattern: str, registry: Registry, progress: Progress) -> list[Task]:
    """The tasks, groups and tags whose names contain `pattern` or, if it has wildcards, match it.

    Upper and lower case are the same.
    """
    wanted = pattern.lower()
    if not _is_glob(wanted):
        wanted = f"*{wanted}*"
    return [task for task in everything(registry, progress) if fnmatchcase(task.name.lower(), wanted)]


def everything(registry: Registry, progress: Progress) -> list[Task]:
    """All there are: stage1's own, lm-eval's, then those of plugins."""
    return _ranked(_brought(registry), _lm_eval(progress))


def hint(task: Task) -> str:
    """How a task is used whose name means another one."""
    way = f"this one is used by its file: {task.path}" if task.path else "use its tasks by their own names"
    return (
        f"{task.source} has a {task.kind} {task.name!r} too. The name means that of {task.hidden_by}; {way}"
    )


# -- what there is -----------------------------------------------------------------------------------------


def _brought(registry: Registry) -> list[Task]:
    """What stage1 and plugins bring."""
    return [task for owner, folder in registry.task_folders() for task in read(folder, str(owner))]


def _ranked(brought: Sequence[Task], built_in: Sequence[Task]) -> list[Task]:
    """stage1's tasks, `built_in`, and those of plugins; the first to have a name keeps it."""
    strangers = [task for task in brought if not _is_ours(task)]
    first: dict[str, Task] = {}
    return [
        task
        if first.setdefault(task.name, task) is task
        else task._replace(hidden_by=first[task.name].source)
        for task in [*filter(_is_ours, brought), *built_in, *strangers]
    ]


def _is_ours(task: Task) -> bool:
    return task.source.startswith("stage1 ")


def read(folder: Path | None, source: str) -> list[Task]:
    """What the task files in a folder define; None: in lm-eval's own."""
    from lm_eval.tasks import TaskManager  # most of a second

    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    return [_task(manager.task_index[name], source) for name in manager.all_tasks]


def _task(entry: Any, source: str) -> Task:
    """lm-eval's entry of its index as ours."""
    kinds: dict[str, Kind] = {"GROUP": "group", "TAG": "tag"}  # the others: a task in YAML or in Python
    kind = kinds.get(entry.kind.name, "task")
    listed = entry.cfg.get("task") if kind == "group" else entry.tags if kind == "tag" else None
    members = tuple(name for name in sorted(listed or (), key=str) if isinstance(name, str))
    return Task(entry.name, kind, source, entry.yaml_path, members)


def _lm_eval(progress: Progress) -> list[Task]:
    """lm-eval's own tasks, from the cache if it has them."""
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent
    cache = default_cache() / "tasks" / f"{LM_EVAL.replace(' ', '-')}.json"
    with suppress(OSError, ValueError, TypeError, AttributeError):  # a damaged file counts as none
        entries = json.loads(cache.read_bytes())
        return [
            Task(name, kind, LM_EVAL, folder / path if path else None, tuple(members))
            for name, (kind, path, members) in entries.items()
        ]
    with progress.task("Reading lm-eval's task files"):
        tasks = read(None, LM_EVAL)
    entries = {t.name: (t.kind, t.path and str(t.path.relative_to(folder)), t.members) for t in tasks}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_json(cache, entries)
    except (OSError, Stage1Error):
        progress.note(f"Cannot write {cache.parent}: lm-eval's task files will be read again next time.")
    return tasks


# -- what is asked for -------------------------------------------------------------------------------------


def _is_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.endswith((".yaml", ".yml"))


def _is_glob(text: str) -> bool:
    return any(wildcard in text for wildcard in "*?[")


def _file(path: Path) -> Task:
    """What a task file defines.

    Raises:
        UsageError: there is no such file, or it defines nothing.
    """
    from lm_eval.tasks._index import TaskIndex
    from lm_eval.tasks._yaml_loader import load_yaml

    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        near = get_close_matches(path.name, [file.name for file in path.parent.glob("*.y*ml")], n=1)
        raise UsageError(
            f"The task file {path} {what}.",
            f"Did you mean {near[0]!r}?" if near else "Name a task's YAML file, or a task: `stage1 tasks`.",
        )
    try:
        entries: dict[str, Any] = {}
        TaskIndex.process_cfg(load_yaml(path, resolve_func=False), path.resolve(), entries)
        [name] = (name for name, entry in entries.items() if entry.yaml_path)
        return _task(entries[name], str(path))
    except Exception as error:  # whatever a stranger's file makes lm-eval stumble over
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{path} is not an lm-eval task file: {reason}.", "See lm-eval's guide to tasks."
        ) from None


def _beside(group: Task) -> dict[str, Task]:
    """The tasks in the files beside a group's, which it may name."""
    beside = {}
    for path in sorted(group.path.parent.glob("*.yaml")) if group.path else []:
        with suppress(UsageError):  # what its tasks include, say, which is no task itself
            task = _file(path)
            beside[task.name] = task
    return beside


def _matching(text: str, known: Mapping[str, Task]) -> list[str]:
    """The names that `text` stands for. A pattern leaves groups and tags out, whose tasks it matches too."""
    if text in known or not _is_glob(text):
        return [text] if text in known else []
    matches = [name for name in known if fnmatchcase(name, text)]
    return [name for name in matches if known[name].kind == "task"] or matches


def _refuse_unknown(unknown: Collection[str], known: Iterable[str], where: str = "") -> None:
    if not unknown:
        return
    near = {name: get_close_matches(name, known, n=3) for name in unknown}
    told = [
        f"{name!r}" + (f" (did you mean {', '.join(near[name])}?)" if near[name] else "") for name in near
    ]
    raise UsageError(
        f"Unknown task{'s' if len(told) > 1 else ''}{where}: {', '.join(told)}.",
        "`stage1 tasks PATTERN` lists them.",
    )


def _refuse_namesakes(specs: Sequence[str], files: Mapping[str, Task]) -> None:
    """Results hold a task by its name."""
    seen: dict[str, str] = {}
    for spec in specs:
        name = files[spec].name if spec in files else spec
        if name in seen:
            raise UsageError(
                f"{seen[name]} and {spec} are both called {name!r}, and results hold one of a name.",
                "Ask for one at a time, or rename the one in your file.",
            )
        seen[name] = spec


def _manager(known: Mapping[str, Task], metadata: Mapping[str, Any] | None) -> Any:
    """lm-eval's manager, which finds the tasks `known` under their keys."""
    from lm_eval.tasks import TaskManager, _index

    manager = TaskManager(include_defaults=False, metadata=dict(metadata or {}))
    for spec, task in known.items():
        kind = _index.Kind[task.kind.upper()]  # a task in Python is known by its file's `class`
        manager.task_index[spec] = _index.Entry(task.name, kind, task.path, tags=set(task.members))
    return manager

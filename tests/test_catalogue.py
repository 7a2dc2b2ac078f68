"""Which tasks there are, what their names mean, and what becomes of a name that means nothing."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import stage1
from conftest import Invoke, Notes
from plugin_sites import Site
from stage1.errors import UsageError
from stage1.evaluation.lm_eval.catalogue import LM_EVAL, Task, everything, find, hint, select
from stage1.plugins import Registry, load_plugins
from stage1.progress import Progress
from stage1_datasets.tasks import stage1_tasks

OURS = f"stage1 {stage1.__version__}"
FOLDER = stage1_tasks()
PLUGIN = dedent("""
    from pathlib import Path
    import stage1

    @stage1.hookimpl
    def stage1_tasks():
        return Path({folder!r})
""")
CUSTOM = dedent("""
    task: {name}
    {more}
    custom_dataset: !function {module}.docs
    output_type: generate_until
    test_split: test
    doc_to_text: "{{{{question}}}}"
    doc_to_target: "a"
    generation_kwargs: {{until: ["\\n"], max_gen_toks: 2}}
    metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
""")
DOCS = """
    from datasets import Dataset

    def docs(**kwargs):
        return {"test": Dataset.from_list([{"question": "Which?"}])}
"""


class Told(Notes):
    """What was worked on, and the notes."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[str] = []

    @contextmanager
    def task(self, label: str, total: int | None = None, unit: str = "") -> Iterator[Callable[[int], None]]:
        self.work.append(label)
        yield lambda done: None


pytestmark = pytest.mark.usefixtures("catalogued")


def write(folder: Path, name: str, more: str = "") -> Path:
    """A task file that needs no download, and its functions."""
    folder.mkdir(exist_ok=True)
    (folder / "functions.py").write_text(dedent(DOCS), encoding="utf-8")
    path = folder / f"{name}.yaml"
    path.write_text(CUSTOM.format(name=name, more=more, module="functions"), encoding="utf-8")
    return path


@pytest.fixture
def stranger(site: Site, tmp_path: Path) -> tuple[Registry, Path]:
    """A package with tasks, two of which have names that are taken, and the folder of them."""
    folder = tmp_path / "theirs"
    for name in ("theirs-1", "theirs-2", "arc_easy", "squad"):
        write(folder, name, more="tag: theirs-tag" if name.startswith("theirs") else "")
    (folder / "broken.yaml").write_text("task: [", encoding="utf-8")
    group = {"group": "theirs", "task": ["theirs-1", "theirs-2"]}
    (folder / "group.yaml").write_text(json.dumps(group), encoding="utf-8")
    site.install("quiz", {"tasks": PLUGIN.format(folder=str(folder))})
    return site.load(), folder


def loaded(names: list[str], registry: Registry, **metadata: Any) -> dict[str, Any]:
    """The tasks that lm-eval makes of a selection."""
    chosen = select(names, registry, Progress(), metadata)
    tasks: dict[str, Any] = chosen.manager.load(chosen.tasks)["tasks"]
    return tasks


def refused(*names: str, registry: Registry | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        select(names, registry or load_plugins(), Progress())
    assert caught.value.exit_code == 2
    return str(caught.value)


# -- the list ------------------------------------------------------------------------------------------------


def test_all_that_lm_eval_has_is_found_by_name_and_file() -> None:
    from lm_eval.tasks import __file__ as package

    found = {task.name: task for task in everything(load_plugins(), Progress())}
    assert len(found) > 10_000
    assert found["arc_easy"].path == Path(package).parent / "arc" / "arc_easy.yaml"
    assert (found["mmlu"].kind, found["ai2_arc"].kind, found["arc_easy"].kind) == ("group", "tag", "task")
    assert found["ai2_arc"].members == ("arc_challenge", "arc_easy")
    assert {found[name].source for name in ("squad", "tiny-squad")} == {OURS}
    assert found["squad"].path == FOLDER / "squad.yaml"
    assert not any(task.hidden_by for task in found.values()), "lm-eval has a task of our name by now"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("SQUAD", {"squad", "tiny-squad", "squadv2", "squad_completion"}),
        ("Arc_e*y", {"arc_easy", "arc_eu_easy"}),
        ("*_openai", {"lambada_openai"}),
        ("ai2_ar[c]", {"ai2_arc"}),
        ("no such thing", set()),
    ],
)
def test_a_pattern_is_part_of_a_name_or_a_glob(pattern: str, expected: set[str]) -> None:
    found = [task.name for task in find(pattern, load_plugins(), Progress())]
    assert expected.issubset(found)
    assert bool(found) == bool(expected)
    assert "hellaswag" not in found


def test_lm_evals_files_are_read_once(indexed: Path) -> None:
    told = Told()
    everything(load_plugins(), told)
    assert told.work == []
    [cache] = (indexed / "tasks").iterdir()
    assert cache.name == f"{LM_EVAL.replace(' ', '-')}.json"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Task]:
    """All that there is to be read, into an empty cache."""
    tasks = [find("arc_easy", load_plugins(), Progress())[0]]
    monkeypatch.setattr(
        "stage1.evaluation.lm_eval.catalogue.read", lambda folder, source: tasks if folder is None else []
    )
    monkeypatch.setenv("STAGE1_CACHE", str(tmp_path))
    return tasks


@pytest.mark.parametrize("content", ["", "[]", '{"a": 3}', '{"a": ["task"', '{"a": ["task", 3, 4]}', "\xff"])
def test_a_damaged_list_is_made_anew(content: str, few: list[Task], tmp_path: Path) -> None:
    file = tmp_path / "tasks" / f"{LM_EVAL.replace(' ', '-')}.json"
    file.parent.mkdir()
    file.write_text(content, encoding="latin-1")
    for work in (["Reading lm-eval's task files"], []):
        told = Told()
        assert everything(load_plugins(), told) == few
        assert told.work == work


def test_a_cache_that_cannot_be_written_stops_nothing(few: list[Task], tmp_path: Path) -> None:
    (tmp_path / "tasks").write_text("no folder")
    told = Told()
    assert everything(load_plugins(), told) == few
    [note] = told.notes
    assert "Cannot write" in note


# -- what is asked for ---------------------------------------------------------------------------------------


def test_our_own_tasks_need_nothing_of_lm_evals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGE1_CACHE", str(tmp_path))
    told = Told()
    path = write(tmp_path / "mine", "mine")
    chosen = select(["tiny-squad", str(path)], load_plugins(), told)
    assert told.work == []
    assert chosen.tasks == ["tiny-squad", str(path)]
    assert set(chosen.manager.load(chosen.tasks)["tasks"]) == {"tiny-squad", "mine"}


def test_a_glob_stands_for_tasks_and_each_is_asked_once() -> None:
    chosen = select(["arc_easy", "lambada*openai", "arc_[e]asy", "arc_easy"], load_plugins(), Progress())
    assert chosen.tasks == ["arc_easy", "lambada_openai"]
    everywhere = select(["mmlu_llama*"], load_plugins(), Progress()).tasks
    assert "mmlu_llama_abstract_algebra" in everywhere
    assert "mmlu_llama" not in everywhere, "a group's tasks would be asked twice"
    assert select(["ai2_ar?"], load_plugins(), Progress()).tasks == ["ai2_arc"]


def test_the_manager_knows_lm_evals_groups_and_tags() -> None:
    manager = select(["mmlu", "ai2_arc"], load_plugins(), Progress()).manager
    assert manager.task_index["ai2_arc"].tags == {"arc_challenge", "arc_easy"}
    assert manager.task_index["mmlu"].yaml_path.name == "_mmlu.yaml"
    assert "mmlu_stem" in manager.task_index


def test_metadata_reach_the_task(tmp_path: Path) -> None:
    record = {"id": "q", "context": "c", "question": "q", "answers": ["a"]}
    (tmp_path / "data.jsonl").write_text(json.dumps(record), encoding="utf-8")
    tasks = loaded(["squad"], load_plugins(), data=str(tmp_path / "data.jsonl"))
    assert [doc["id"] for doc in tasks["squad"].test_docs()] == ["q"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["theirs-1"], ["theirs-1"]),
        (["theirs-*"], ["theirs-1", "theirs-2"]),
        (["theirs"], ["theirs-1", "theirs-2"]),
        (["theirs-tag"], ["theirs-1", "theirs-2"]),
    ],
)
def test_a_plugins_tasks_are_asked_by_name(
    names: list[str], expected: list[str], stranger: tuple[Registry, Path]
) -> None:
    assert sorted(loaded(names, stranger[0])) == expected


@pytest.mark.parametrize("name", ["arc_easy", "squad"])
def test_a_name_keeps_its_meaning_and_the_stranger_is_reached_by_its_file(
    name: str, stranger: tuple[Registry, Path]
) -> None:
    registry, folder = stranger
    told = Told()
    chosen = select([name], registry, told)
    assert folder not in chosen.manager.task_index[name].yaml_path.parents
    [note] = told.notes
    owner = LM_EVAL if name == "arc_easy" else OURS
    assert note == (
        f"quiz 1.2 has a task {name!r} too. The name means that of {owner}; "
        f"this one is used by its file: {folder / name}.yaml"
    )
    tasks = loaded([str(folder / f"{name}.yaml")], registry)
    assert [doc["question"] for doc in tasks[name].test_docs()] == ["Which?"]
    message = refused(name, str(folder / f"{name}.yaml"), registry=registry)
    assert "are both called" in message


def test_a_groups_file_may_name_its_neighbours_and_lm_evals_tasks(tmp_path: Path) -> None:
    path = write(tmp_path / "mine", "mine").parent / "all.yaml"
    path.write_text("group: all-of-mine\ntask: [mine, tiny-squad]\n", encoding="utf-8")
    assert set(loaded([str(path)], load_plugins())) == {"mine", "tiny-squad"}
    path.write_text("group: all-of-mine\ntask: [mine, arc_eazy]\n", encoding="utf-8")
    message = refused(str(path))
    assert str(path) in message
    assert "'arc_eazy' (did you mean arc_easy" in message


def test_unknown_names_are_all_told_with_the_nearest(stranger: tuple[Registry, Path]) -> None:
    message = refused("squda", "arc_easy", "their-1", "zz*", "qqqqqqqqqqqq", registry=stranger[0])
    first, second = message.split("\n")
    assert first.startswith("Unknown tasks: 'squda' (did you mean squad")
    assert "'their-1' (did you mean theirs-1" in first
    assert first.endswith("'zz*', 'qqqqqqqqqqqq'.")
    assert second == "`stage1 tasks PATTERN` lists them."


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("task: [", "while parsing"),
        ("- a list\n", "list"),
        ("", "NoneType"),
        ("a: 1\n", "Unknown config shape"),
        ("include: absent.yaml\ntask: x\n", "absent.yaml"),
        ("\x00", "unacceptable character"),
    ],
)
def test_a_file_that_is_no_task_is_refused_in_a_line(content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content, encoding="utf-8")
    problem, _ = refused(str(path)).split("\n")
    assert problem.startswith(f"{path} is not an lm-eval task file: ")
    assert reason in problem


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "mine")
    assert "does not exist.\nDid you mean 'mine.yaml'?" in refused(str(tmp_path / "mien.yaml"))
    assert "is a folder" in refused(f"{tmp_path}/")


# -- stage1 tasks --------------------------------------------------------------------------------------------


@pytest.fixture
def with_stranger(stranger: tuple[Registry, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("stage1.plugins.load_plugins", lambda: stranger[0])
    return stranger[1]


def test_the_listing_without_a_pattern_is_short(invoke: Invoke, with_stranger: Path) -> None:
    result = invoke("tasks")
    assert result.code == 0
    rows = [line.split() for line in result.out.splitlines() if line]
    assert rows[:3] == [
        ["name", "kind", "source"],
        ["squad", "task", *OURS.split()],
        ["tiny-squad", "task", *OURS.split()],
    ]
    assert ["theirs", "group", "quiz", "1.2"] in rows
    assert ["arc_easy", "task", "quiz", "1.2"] not in rows
    assert result.out.count("this one is used by its file") == 2
    assert re.search(r"lm-eval [\d.]+ has 1\d,\d{3} more: `stage1 tasks PATTERN` searches", result.out)


def test_the_listing_of_a_pattern(invoke: Invoke) -> None:
    result = invoke("tasks", "LAMBADA_openai")
    assert ["lambada_openai", "task", *LM_EVAL.split()] in [line.split() for line in result.out.splitlines()]
    assert "hellaswag" not in result.out
    found = json.loads(invoke("tasks", "lambada_openai", "--json").out)
    assert {"name", "kind", "source", "path", "members", "hidden_by"} == set(found[0])
    assert "lambada_openai" in [task["name"] for task in found]


def test_a_listing_without_a_match_ends_with_1_as_grep_does(invoke: Invoke) -> None:
    result = invoke("tasks", "no[such", "--json")
    assert (result.code, json.loads(result.out)) == (1, [])
    assert result.err.startswith("Error: No task")
    assert "Did you mean hellaswag" in invoke("tasks", "helaswagg").err


def test_the_folders_for_stock_lm_eval(invoke: Invoke, with_stranger: Path) -> None:
    result = invoke("tasks", "--path")
    assert result.out.splitlines() == [str(FOLDER), str(with_stranger)]


def test_a_strangers_name_is_shown_escaped(
    invoke: Invoke, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for number, name in enumerate(("[red]:cat:odd", "\x1b[31modd", "squad")):
        (folder / f"{number}.yaml").write_text(json.dumps({"task": name}), encoding="utf-8")
    site.install("odd", {"tasks": PLUGIN.format(folder=str(folder))})
    registry = site.load()
    monkeypatch.setattr("stage1.plugins.load_plugins", lambda: registry)
    out = invoke("tasks").out
    assert "[red]:cat:odd" in out
    assert "\\x1b[31modd" in out
    assert "\x1b" not in out
    assert hint(find("squad", registry, Progress())[-1]) in out

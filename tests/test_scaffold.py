"""`stage1 plugins new`: what it writes works as it is, and what it cannot write it refuses."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import GENERATED, ROOT, Invoke, refused
from stage1.errors import UsageError
from stage1.files import TEMPORARY
from stage1.scaffold import KINDS, LONGEST, named, render, write
from wheels import Environment

pytestmark = pytest.mark.usefixtures("catalogued")  # no name may be that of a task


def python(*arguments: str, cwd: Path) -> str:
    """Run a module of this Python; what it printed."""
    command = [sys.executable, "-m", *arguments]
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.slow
def test_the_packages_pass_their_own_tests(
    generated: list[Path], installed: Environment, tmp_path: Path
) -> None:
    folders = [folder / "tests" for folder in generated]
    run = installed.run("python", "-m", "pytest", "-v", *folders, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    for kind, name in GENERATED.items():
        check = "test_names" if kind == "task" else "test_determinism"
        assert f"test_{name}.py::Test{named(name, kind).class_name}::{check} PASSED" in run.stdout, kind
        assert f"test_{name}.py::test_" in run.stdout, f"{kind} has no test of its own"


def test_they_keep_to_their_own_rules_of_style(generated: list[Path], tmp_path: Path) -> None:
    """With names of one letter and of the greatest length too, which move the ends of lines."""
    for kind in KINDS:
        for text in ("k", f"{kind}_{'a' * LONGEST}"[:LONGEST]):
            names = named(text, kind)
            write(tmp_path / kind / names.distribution, render(names))
    for folder in (tmp_path, generated[0].parent):
        python("ruff", "check", "--no-cache", ".", cwd=folder)
        python("ruff", "format", "--no-cache", "--check", ".", cwd=folder)


@pytest.mark.slow
def test_they_are_typed(generated: list[Path]) -> None:
    """With stage1's own configuration, whose cache has what torch's types cost."""
    sources = [str(folder / part) for folder in generated for part in ("src", "tests")]
    assert "no issues found in 8" in python("mypy", *sources, cwd=ROOT)


def test_it_says_what_it_wrote_and_how_to_go_on(invoke: Invoke, tmp_path: Path) -> None:
    words = ("stage1-Top.K", "--kind", "compressor", "--output", "my plugins")
    shown = invoke("plugins", "new", *words).printed
    folder = tmp_path / "my plugins" / "stage1-top-k"
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == [
        ".github/workflows/test.yml",
        ".gitignore",
        "README.md",
        "pyproject.toml",
        "src/stage1_top_k/__init__.py",
        "src/stage1_top_k/py.typed",
        "tests/test_top_k.py",
    ]
    for file in files:
        assert file.rpartition("/")[2] in shown
    commands = [
        "cd 'my plugins/stage1-top-k'",
        'pip install -e ".[test]"',
        "pytest",
        "stage1 plugins check top_k",
        "stage1 train --compressor top_k",
    ]
    assert [line.strip() for line in shown.splitlines()[-len(commands) :]] == commands
    assert all("{{" not in (folder / file).read_text() or file.endswith("test.yml") for file in files)
    assert list(folder.parent.iterdir()) == [folder]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_json_says_the_same(invoke: Invoke, tmp_path: Path) -> None:
    told = json.loads(invoke("plugins", "new", "quiz", "--kind", "task", "--json").printed)
    assert told["folder"] == "stage1-quiz"
    assert "src/stage1_quiz/quiz.jsonl" in told["files"]
    assert all((tmp_path / "stage1-quiz" / file).is_file() for file in told["files"])
    assert told["next"][0] == "cd stage1-quiz"
    assert told["next"][-1] == "stage1 eval RUN --tasks quiz"


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("2bit", "compressor", ["'2bit' cannot be a plugin's name", "such as top_k"]),
        ("top k", "compressor", ["cannot be a plugin's name"]),
        ("größe", "compressor", ["cannot be a plugin's name"]),
        ("../evil", "compressor", ["cannot be a plugin's name"]),
        ("_top", "compressor", ["cannot be a plugin's name"]),
        ("stage1-", "compressor", ["cannot be a plugin's name"]),
        ("", "compressor", ["cannot be a plugin's name"]),
        ("lambda", "loss", ["keyword of Python", "my_lambda"]),
        ("none", "loss", ["keyword of Python", "my_none"]),
        ("a" * (LONGEST + 1), "loss", ["too long", f"at most {LONGEST}"]),
        ("pca", "compressor", ["'pca' is the compressor of stage1 0.1.0 already", "my_pca"]),
        ("lambada", "task", ["'lambada' is the task of lm-eval 0.4", "my_lambada"]),
        ("losses", "loss", ["stage1_losses is installed already", "my_losses"]),
        ("code", "compressor", ["would hide the Code", "my_code"]),
        ("topk", "compresor", ["Unknown kind 'compresor'", "Did you mean 'compressor'", "task"]),
    ],
)
def test_what_cannot_be_is_refused(
    name: str, kind: str, words: list[str], invoke: Invoke, tmp_path: Path
) -> None:
    refused(invoke("plugins", "new", name, "--kind", kind), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["compressor", "adapter", "loss"])
def test_no_class_can_take_the_name_of_one_that_its_module_or_test_imports(kind: str) -> None:
    files = render(named("mine", kind))
    nodes = [node for path in files if path.endswith(".py") for node in ast.parse(files[path]).body]
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    classes = {name for name in imported if name[0].isupper()} - {"Mine"}
    assert f"{kind.title()}Suite" in classes
    for name in classes:
        names = named(re.sub(r"(?<!^)(?=[A-Z])", "_", name), kind)
        assert names.class_name == name
        with pytest.raises(UsageError, match=f"would hide the {name} "):
            render(names)


def test_a_folder_that_is_not_empty_stays_as_it_is(invoke: Invoke, tmp_path: Path) -> None:
    folder = tmp_path / "stage1-topk"
    folder.mkdir()
    assert invoke("plugins", "new", "topk", "--kind", "loss").code == 0  # an empty one will do
    assert (folder / "pyproject.toml").is_file()
    (folder / "pyproject.toml").write_text("mine")
    before = sorted(folder.rglob("*"))
    again = invoke("plugins", "new", "topk", "--kind", "compressor")
    refused(again, "stage1-topk exists already", "--output")
    assert sorted(folder.rglob("*")) == before
    assert (folder / "pyproject.toml").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_file_in_the_way_is_not_replaced(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "stage1-topk").write_text("mine")
    for output in (".", "stage1-topk"):
        refused(invoke("plugins", "new", "topk", "--kind", "loss", "--output", output), "stage1-topk")
    assert (tmp_path / "stage1-topk").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot write .*: File name too long"):
        write(tmp_path / "stage1-topk", {"README.md": "# topk", "a" * 300: "cannot be"})
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".stage1-killed.{dead.pid}.x{TEMPORARY}"
    left.mkdir()
    write(tmp_path / "stage1-killed", {"README.md": "x"})
    assert not left.exists()

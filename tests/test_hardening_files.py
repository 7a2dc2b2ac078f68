"""Names stay in their folder, files are read within bounds and known to be whole, text is only text."""

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from conftest import Cli, Invoke, Notes, refused, small_config
from faults.processes import ended, fork, watched
from stage1.bounded import OutOfBoundsError, load_json, load_yaml
from stage1.cli.console import make_console
from stage1.errors import ConfigError, ConfigIssue, Stage1Error, UsageError
from stage1.experiment import evaluate_run
from stage1.files import TEMPORARY, append, read_record, safe_name, to_json, write_atomic, write_record
from stage1.progress import Progress
from stage1.runs.journal import Journal
from stage1.runs.run import METRICS, Run
from stage1.text import one_line, visible

EVIL = "\x1b[2J\x1b]0;title\x07 \u202eevil\x9b31m"
"""What a terminal would obey: clear the screen, a title, right to left, red."""


# -- names ------------------------------------------------------------------------------------------------


@given(st.text(max_size=400))
def test_any_name_is_one_plain_part_of_a_path(name: str) -> None:
    safe = safe_name(name)
    assert safe == Path(safe).name
    assert safe not in ("", ".", "..")
    assert not safe.startswith(".")
    assert safe.isprintable()
    assert len(os.fsencode(safe)) < 140
    assert safe_name(safe) == safe or len(os.fsencode(safe)) > 120


def test_plain_names_stay_and_others_never_meet() -> None:
    assert safe_name("arc_easy-1.5=x") == "arc_easy-1.5=x"
    names = ["..", ".", "", "a/b", "a_b", "a-b", "a b", "a\0b", "../results", "x" * 300, "x" * 301, ".hidden"]
    assert len({safe_name(name) for name in names}) == len(names)


def test_a_task_of_any_name_stays_in_its_folder(tmp_path: Path) -> None:
    run = Run.create(small_config(f"output={tmp_path / 'run'}"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name in ("..", "../..", "/etc/x", "a\x1bb", "t" * 300):
        run.write_tasks({"protocol": {}, "tasks": [{"task": name}]}, {name: {"text": [], "../up": []}})
    for path in tmp_path.rglob("*"):
        if path.is_file() and path not in before:
            assert path.parent.parent == run.path / "tasks"
    assert all(path.read_bytes() == content for path, content in before.items())


# -- links, pipes, devices --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["tasks", "state", "predictions", "phase1", "phase1/state", "tasks/a", METRICS, ".lock"]
)
def test_nothing_is_written_through_a_link_in_a_run(tmp_path: Path, name: str) -> None:
    run, outside = Run.create(small_config(f"output={tmp_path / 'run'}")), tmp_path / "outside"
    outside.mkdir()
    shutil.rmtree(run.path / name, ignore_errors=True)
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).parent.mkdir(exist_ok=True)
    (run.path / name).symlink_to(outside)
    with pytest.raises(UsageError, match="written outside"):
        Run.open(run.path)


@pytest.mark.parametrize("name", [METRICS, ".lock"])
def test_a_pipe_in_place_of_a_file_that_grows(tmp_path: Path, name: str) -> None:
    run = Run.create(small_config(f"output={tmp_path / 'run'}"))
    os.mkfifo(run.path / name)
    with pytest.raises(UsageError, match="not a file"):
        Run.open(run.path)


def test_a_journal_is_no_way_to_another_file(tmp_path: Path) -> None:
    victim, notes = tmp_path / "victim", Notes()
    victim.write_text("mine\n")
    path = Journal(tmp_path, "x", notes).path
    assert path is not None
    path.parent.mkdir()
    path.symlink_to(victim)
    Journal(tmp_path, "x", notes).add("question", "answer")
    assert victim.read_text() == "mine\n"
    assert "not cached" in notes.notes[0]
    path.unlink()
    os.mkfifo(path)
    Journal(tmp_path, "x", notes).add("question", "answer")  # does not wait for a reader
    assert "not cached" in notes.notes[1]


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("mine")
    link.symlink_to(victim)
    write_atomic(link, b"new")
    assert (victim.read_text(), link.read_text(), link.is_symlink()) == ("mine", "new", False)
    with pytest.raises(OSError, match="regular file"):
        append(Path("/dev/null"), b"x")


# -- a run's files ----------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def sock(path: Path) -> None:
    path.unlink()
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)  # a socket's path may have 107 characters


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


DAMAGE: list[Callable[[Path], object]] = [
    cut,
    flip,
    pipe,
    folder,
    sock,
    deep,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_text("[1, 2]"),
    lambda path: path.write_text('{"schema": 1}'),
    lambda path: path.write_bytes(os.urandom(200)),
]


READS: dict[str, Callable[[Path], Any]] = {
    "config.yaml": Run.open,
    "manifest.json": lambda path: evaluate_run(Run.open(path), {}, Progress()),
    "results.json": lambda path: Run.open(path).read_results(),
    "predictions/bottleneck.jsonl": lambda path: Run.open(path).read_answers("bottleneck"),
    "bottleneck.json": lambda path: evaluate_run(Run.open(path), {}, Progress()),
    "bottleneck.safetensors": lambda path: evaluate_run(Run.open(path), {}, Progress()),
}


def test_what_is_whole_is_read(spoilt: Path) -> None:
    for read in READS.values():
        read(spoilt)


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_named_and_not_believed(spoilt: Path, damage: Callable[[Path], object]) -> None:
    for name, read in READS.items():
        kept = (spoilt / name).read_bytes()
        damage(spoilt / name)
        with pytest.raises(UsageError) as caught:
            read(spoilt)
        message = str(caught.value)
        assert Path(name).stem in message or str(spoilt) in message, message
        assert caught.value.remedy
        assert len(message.splitlines()) <= 2
        shutil.rmtree(spoilt / name) if (spoilt / name).is_dir() else (spoilt / name).unlink()
        (spoilt / name).write_bytes(kept)


def test_every_flipped_bit_of_a_state_is_noticed(tmp_path: Path) -> None:
    run = Run.create(small_config(f"output={tmp_path / 'run'}"))
    assert run.state.load() is None
    run.state.save({"w": torch.arange(6.0), "t": torch.tensor(5)}, {"step": 5, "nan": float("nan")})
    state = run.path / "state" / "state.safetensors"
    whole = state.read_bytes()
    for place in range(8, len(whole)):
        for bit in (0, 6):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            state.write_bytes(bytes(changed))
            with contextlib.suppress(UsageError):  # white space in the header decides nothing
                tensors, facts = run.state.load() or ({}, {})
                assert torch.equal(tensors["w"], torch.arange(6.0)), place
                assert (int(tensors["t"]), facts["step"]) == (5, 5), place


def test_an_empty_configuration_is_not_the_defaults(spoilt: Path, invoke: Invoke) -> None:
    run = str(spoilt)
    commands = (
        ["eval", run],
        ["train", "--resume", "--output", run],
        ["diagnose", run],
        ["push", run, "me/it", "--dry-run"],
    )
    edited = (spoilt / "config.yaml").read_text().replace("seed: 0", "seed: 1")
    for text in ("", "\n", "seed: 0\n", edited):
        (spoilt / "config.yaml").write_text(text)
        for command in commands:
            refused(invoke(*command), "was cut or edited", "stage1 train")


def test_an_edited_record_is_not_believed_and_a_whole_one_comes_back(tmp_path: Path) -> None:
    record = {"b": [1, 2.5, None], "a": {"ü": "x\u2028", "n": 1e-300}, "ten": {"10": 1, "9": 2}}
    write_record(tmp_path / "r.json", record)
    assert read_record(tmp_path / "r.json", "") == record
    text = (tmp_path / "r.json").read_text()
    (tmp_path / "r.json").write_text(text.replace("2.5", "2.6"))
    with pytest.raises(UsageError, match="checksum"):
        read_record(tmp_path / "r.json", "Do it again.")
    (tmp_path / "r.json").write_text(text.replace("\n", "\n "))  # its form is free
    assert read_record(tmp_path / "r.json", "") == record


# -- creation in one step ---------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["new", "there", None])
def test_a_run_killed_while_it_is_made_blocks_nothing(
    tmp_path: Path, output: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(*([f"output={output}"] if output else []))
    for number in range(1, 99):
        home = tmp_path / str(number)
        home.mkdir()
        monkeypatch.chdir(home)
        if output == "there":
            Path(output).mkdir()
        if not watched(home, lambda: Run.create(config), number).killed:
            break
        made = [path.parent for path in home.rglob("config.yaml") if TEMPORARY not in str(path)]
        run = Run.open(made[0]) if made else Run.create(config)
        assert run.config == config
        assert made or not list(home.rglob(f"*{TEMPORARY}*"))
    assert number > 4


def test_two_programs_never_get_the_same_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    children = [fork(lambda: [Run.create(small_config()) for _ in range(5)]) for _ in range(4)]
    assert {ended(child) for child in children} == {0}
    assert len(list(Path("runs").iterdir())) == 20
    for path in Path("runs").iterdir():
        Run.open(path)


# -- text ---------------------------------------------------------------------------------------------------


def test_an_error_shows_foreign_text_as_text() -> None:
    for error in (
        UsageError(f"Cannot read {EVIL}\nError: all is well", EVIL),
        ConfigError([ConfigIssue(f"a.{EVIL}", EVIL)]),
        Stage1Error("x" * 100_000, "y" * 100_000),
        ConfigError([ConfigIssue(f"key{n}", "z" * 5000) for n in range(10_000)]),
    ):
        lines = str(error).splitlines()
        assert all(line.isprintable() and len(line) <= 1000 for line in lines)
        assert len(lines) <= 51
    assert len(str(UsageError("a\nb", "c\nd")).splitlines()) == 2


@given(st.text())
def test_visible_text_has_nothing_to_obey(text: str) -> None:
    assert visible(text).isprintable()
    assert one_line(text, 50).isprintable()
    assert len(one_line(text, 50)) <= 50
    if text.isprintable():
        assert visible(text) == text


def test_json_for_people_obeys_nothing_and_means_the_same() -> None:
    value = {EVIL: [EVIL, "\ud800", "\U000e0001", "plain ü 漢"]}
    assert "\x1b" not in to_json(value)
    assert to_json(value).replace("\n", "").isprintable()
    assert json.loads(to_json(value)) == value
    assert "漢" in to_json({"a": "漢"})


def test_tables_and_notes_show_foreign_text_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    console = make_console()
    console.file = io.StringIO()
    table = Table(EVIL)
    table.add_row(EVIL)
    console.print(table)
    console.print(EVIL, markup=False)
    console.print(f"[bold]{EVIL}")
    text = console.file.getvalue()
    assert "evil" in text
    assert text.replace("\n", "").isprintable()


# -- bounds -------------------------------------------------------------------------------------------------


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


BOMBS = {
    "aliases": laughs(9),
    "merges": "a: &a {x: [" + "1, " * 999 + "1]}\n" + "\n".join(f"b{n}: {{<<: *a}}" for n in range(200)),
    "itself": "a: &a [*a]",
    "deep": "[" * 100_000,
    "deep in blocks": "\n".join(" " * n + "a:" for n in range(500)),
    "deep in maps": "{a: " * 5000,
    "large": "a: [" + "1, " * 600_000 + "1]",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_does_not_become_a_large_tree(kind: str, tmp_path: Path, invoke: Invoke) -> None:
    with pytest.raises(OutOfBoundsError):
        load_yaml(BOMBS[kind])
    (tmp_path / "bomb.yaml").write_text(BOMBS[kind])
    done = invoke("config", "show", "bomb.yaml")
    refused(done)
    assert len(done.err) < 600


def test_settings_and_axes_are_bounded(invoke: Invoke) -> None:
    for value in ("[" * 5000, "{a: " * 5000, "&a [*a]"):
        for words in (("train", "--set"), ("sweep", "--output", "s", "--over")):
            refused(invoke(*words, f"compressor.dim={value}"))


def test_what_is_within_bounds_is_read_as_before() -> None:
    text = "a: &a {x: [1, 2.5, yes]}\nb: *a\nc: {<<: *a, y: 2024-01-01}\nd: null\n"
    assert load_yaml(text) == yaml.safe_load(text)
    assert load_yaml("") is None
    value = {"a": [[1], {"b": None}]}
    assert load_json(json.dumps(value)) == value
    for bad in ("[" * 100_000, "[" * 60 + "]" * 60, '{"a": NaN}'):
        with pytest.raises(ValueError, match=r"deep|NaN"):
            load_json(bad)


# -- the terminal and the names of files --------------------------------------------------------------------


def test_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    for command in (["recipes", "show", "phase1"], ["recipes"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "stage1", *command],
                cwd=tmp_path,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert done.returncode == 1, done.stderr
        assert done.stderr == "Error: Cannot write to standard output: No space left on device.\n"


def test_a_terminal_without_unicode(cli: Cli) -> None:
    plain = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    for command in (["--help"], ["recipes", "copy", "phase1", "ü漢.yaml"]):
        done = cli(*command, env=plain)
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()


@pytest.mark.parametrize(
    "args",
    [
        ["eval", "x" * 300],
        ["eval", "~nosuchuser/run"],
        ["train", "--model", "~nosuchuser/model"],
        ["train", "--model", "/" + "x" * 300],
        ["train", "--data", "~nosuchuser/data.json"],
        ["train", "--data", "x" * 300 + ".json"],
        ["train", "--init", "x" * 300],
        ["train", "-q", "--output", "x" * 300],
        ["train", "--set", r'output="a\0b"'],
        ["train", "--set", r'model="/a\0b"'],
        ["train", "--set", r'data="a\0b.json"'],
        ["train", "x" * 300],
        ["diagnose", "x" * 300],
        ["push", "x" * 300, "me/it"],
        ["recipes", "copy", "phase1", "x" * 300],
    ],
)
def test_impossible_names_are_one_line(args: list[str], invoke: Invoke) -> None:
    done = invoke(*args)
    assert done.code in (1, 2), done.err
    assert 1 <= len(done.err.splitlines()) <= 2, done.err
    assert done.err.startswith("Error: ")


@pytest.mark.parametrize(
    "words", [["push", "me/it", "--dry-run"], ["show"], ["report", "-o", f"{EVIL}.html"]]
)
def test_what_a_strangers_results_say_is_shown_as_text(
    words: list[str], spoilt: Path, invoke: Invoke
) -> None:
    results = read_record(spoilt / "results.json", "")
    results["rows"][-1]["row"] = EVIL
    results["training"]["stopped"] = EVIL
    results["verdict"]["text"] = EVIL
    write_record(spoilt / "results.json", results)
    done = invoke(words[0], str(spoilt), *words[1:])
    assert done.code in (0, 2), done.err
    assert (done.out + done.err).replace("\n", "").isprintable()


def test_ctrl_c_while_the_program_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nclass Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "stage1", "recipes"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")

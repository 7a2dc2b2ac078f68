"""The journal of answers: found by content, never trusted blindly, never in the way."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Notes
from stage1.files import default_cache
from stage1.progress import Progress
from stage1.runs.journal import Journal

REQUESTS = {"q1": " Paris", "q2": " 19²\u2028x", "q3": [-1.25, True]}


def journal(folder: Path, decides: object = "model") -> Journal:
    return Journal(folder, decides, Progress())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    written = journal(tmp_path)
    for request, answer in REQUESTS.items():
        written.add(["generate_until", request], answer)
    [path] = (tmp_path / "answers").iterdir()
    return path


def known(folder: Path, decides: object = "model") -> list[str]:
    read = journal(folder, decides)
    return [r for r, answer in REQUESTS.items() if read.get(["generate_until", r]) == answer]


def test_answers_are_found_by_all_that_decides_them(path: Path, tmp_path: Path) -> None:
    assert known(tmp_path) == list(REQUESTS)
    assert known(tmp_path, "another model") == []
    assert journal(tmp_path).get(["loglikelihood", "q1"]) is None
    assert len(path.read_bytes().splitlines()) == 3


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], list[str]]] = {
    "cut short": (lambda content: content[:-20], ["q1", "q2"]),
    "edited": (lambda content: content.replace(b" Paris", b" Rome", 1), ["q2", "q3"]),
    "a line of nonsense": (lambda content: b"\xff\xfe{}\n[]\n" + content, ["q1", "q2", "q3"]),
    "empty": (lambda content: b"", []),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_is_none_and_harms_no_other(damage: str, path: Path, tmp_path: Path) -> None:
    change, left = DAMAGE[damage]
    assert change(path.read_bytes()) != path.read_bytes()
    path.write_bytes(change(path.read_bytes()))
    assert known(tmp_path) == left
    again = journal(tmp_path)
    for request, answer in REQUESTS.items():
        if request not in left:
            again.add(["generate_until", request], answer)
    assert known(tmp_path) == list(REQUESTS)


def test_what_is_forgotten_is_gone(path: Path, tmp_path: Path) -> None:
    journal(tmp_path).forget()
    assert not path.exists()
    journal(tmp_path).forget()  # twice is no error


def test_two_may_write_at_a_time(path: Path, tmp_path: Path) -> None:
    one, other = journal(tmp_path), journal(tmp_path)
    for number in range(20):
        (one if number % 2 else other).add(number, number)
    assert [journal(tmp_path).get(number) for number in range(20)] == list(range(20))
    assert all(json.loads(line) for line in path.read_text().split("\n")[:-1])


def test_an_unwritable_cache_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    notes = Notes()
    written = Journal(tmp_path / "file", {}, notes)
    written.add("q", "a")
    written.add("r", "b")
    assert [note.split(":")[0] for note in notes.notes] == ["Answers are not cached"]


def test_without_a_folder_nothing_is_kept() -> None:
    nowhere = Journal(None, {}, Progress())
    nowhere.add("q", "a")
    assert nowhere.get("q") is None
    nowhere.forget()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGE1_CACHE", "/some/where")
    assert default_cache() == Path("/some/where")
    monkeypatch.delenv("STAGE1_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache() == Path("/xdg/stage1")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "stage1"

"""The cache of the bare model's answers: found by content, never trusted blindly, never in the way."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stage1.baselines import Baselines, default_cache
from stage1.progress import Progress


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def kept(cache: Path) -> list[Path]:
    return sorted((cache / "baselines").glob("*.json"))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "no object": lambda path: path.write_text("[]"),
    "edited": lambda path: path.write_text(path.read_text().replace(': " ', ': " x', 1)),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_answers_are_asked_again(damage: str, tmp_path: Path) -> None:
    ids, answers = ["q1", "q2"], [" Paris", " 19²\u2028x"]
    baselines = Baselines(tmp_path, {"model": "m"}, Progress())
    baselines.write(["text"], ids, answers)
    assert baselines.read(["text"], ids) == answers
    assert baselines.read(["text"], ["q1"]) is None
    assert baselines.read(["raw"], ids) is None
    assert Baselines(tmp_path, {"model": "n"}, Progress()).read(["text"], ids) is None
    [path] = kept(tmp_path)
    before = path.read_bytes()
    DAMAGE[damage](path)
    assert path.read_bytes() != before
    assert baselines.read(["text"], ids) is None
    baselines.write(["text"], ids, answers)
    assert baselines.read(["text"], ids) == answers


def test_an_unwritable_cache_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    notes = Notes()
    baselines = Baselines(tmp_path / "file", {}, notes)
    assert baselines.read("text", ["q"]) is None
    baselines.write("text", ["q"], ["a"])
    baselines.write("raw", ["q"], ["a"])
    assert len(notes.notes) == 1
    assert "not cached" in notes.notes[0]


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGE1_CACHE", "/some/where")
    assert default_cache() == Path("/some/where")
    monkeypatch.delenv("STAGE1_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache() == Path("/xdg/stage1")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "stage1"

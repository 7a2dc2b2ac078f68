"""Ready-made configurations: YAML files beside this one, which `stage1 train --recipe NAME` starts from.

A recipe is an objective and its schedule; it names neither compressor nor adapter.
"""

from pathlib import Path
from typing import Any, NamedTuple

from stage1.config import read_yaml
from stage1.errors import UsageError, suggest

FOLDER = Path(__file__).parent


class Recipe(NamedTuple):
    """A configuration to start from."""

    name: str
    summary: str  # what it does, the first line's comment
    path: Path

    @property
    def text(self) -> str:
        """The file as it is, comments and all."""
        return self.path.read_text(encoding="utf-8")

    @property
    def settings(self) -> dict[str, Any]:
        """The file's settings."""
        return read_yaml(self.path)


def recipes() -> list[Recipe]:
    """All of them, by name."""
    return [_read(path) for path in sorted(FOLDER.glob("*.yaml"))]


def _read(path: Path) -> Recipe:
    first, *_ = path.read_text(encoding="utf-8").splitlines()
    return Recipe(path.stem, first.removeprefix("#").strip(), path)


def find(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        UsageError: there is none; with the nearest name and the choices.
    """
    known = {recipe.name: recipe for recipe in recipes()}
    if name not in known:
        raise UsageError(f"Unknown recipe {name!r}.", suggest(name, known))
    return known[name]

"""Ready-made settings to start from: YAML files beside this module, by kind and name.

A *recipe* is an objective and its schedule; it names neither compressor nor adapter. A *protocol* is a way to
put the questions: numbers under different protocols do not compare.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from stage1.config.settings import RunConfig
from stage1.config.tree import flat, overlay, read_yaml
from stage1.errors import UsageError, suggest


class Preset(NamedTuple):
    """Settings to start from."""

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


class Presets:
    """All presets of one kind.

    Args:
        kind: what one is called.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._folder = Path(__file__).parent / f"{kind}s"

    def all(self) -> list[Preset]:
        """All of them, by name."""
        return [self._read(path) for path in sorted(self._folder.glob("*.yaml"))]

    def _read(self, path: Path) -> Preset:
        first, *_ = path.read_text(encoding="utf-8").splitlines()
        return Preset(path.stem, first.removeprefix("#").strip(), path)

    def find(self, name: str) -> Preset:
        """The one called `name`.

        Raises:
            UsageError: there is none; with the nearest name and the choices.
        """
        known = {preset.name: preset for preset in self.all()}
        if name not in known:
            raise UsageError(f"Unknown {self.kind} {name!r}.", suggest(name, known))
        return known[name]


RECIPES = Presets("recipe")
PROTOCOLS = Presets("protocol")
PRESETS = {"recipe": RECIPES, "protocol": PROTOCOLS}
"""What a run starts from, by kind."""


def from_presets(file: Mapping[str, Any], base: Mapping[str, Any], **typed: str | None) -> dict[str, Any]:
    """The settings of `file` over those of the recipe and the protocol that it names, over `base`.

    Args:
        file: settings; `recipe: NAME` and `protocol: NAME` may stand among them.
        base: what they all override.
        typed: a recipe or a protocol to use instead of the file's.

    Raises:
        UsageError: there is no such recipe or protocol, or all that a typed one says is overridden by `file`.
    """
    own = {key: value for key, value in file.items() if key not in PRESETS}
    tree = dict(base)
    for kind, presets in PRESETS.items():
        if (name := typed.get(kind) or file.get(kind)) is not None:
            settings = presets.find(str(name)).settings
            # Refused is what has no effect beside the file, unless both say the same anyway.
            if typed.get(kind) and overlay(settings, own) == overlay({}, own) != overlay(own, settings):
                raise UsageError(
                    f"The {kind} {name!r} is overridden whole by the file or run beside it.",
                    f"Leave one of them out, or start from a run's weights: --init RUN --{kind} {name}",
                )
            tree = overlay(tree, settings)
    return overlay(tree, own)


def protocol_name(config: RunConfig) -> str:
    """The protocol that `config` follows, or the nearest one with what differs from it."""
    ours = flat(config.model_dump(mode="json"))
    differing = {
        name: [key for key, value in decided.items() if ours.get(key) != value]
        for name, decided in _decided().items()
    }
    nearest, changes = min(differing.items(), key=lambda item: len(item[1]))
    shown = ", ".join(_shown(key.rpartition(".")[2], ours[key]) for key in changes)
    return f"{nearest} with {shown}" if changes else nearest


def _shown(name: str, value: Any) -> str:
    return f"another {name}" if isinstance(value, str | list) else f"{name}={value}"


PROTOCOL_KEYS = ("data.gold", "data.max_prompt_tokens", "eval.max_new_tokens")
"""Settings outside of `prompt` that a protocol decides."""


@cache
def _decided() -> dict[str, dict[str, Any]]:
    """What each protocol decides of the prompt: its own settings, and the defaults where it says nothing."""
    default = RunConfig().model_dump(mode="json")
    decided = {}
    for preset in PROTOCOLS.all():
        said = flat(preset.settings)
        whole = flat(overlay(default, preset.settings))
        decided[preset.name] = {
            key: value
            for key, value in whole.items()
            if key.startswith("prompt.") or key in said or key in PROTOCOL_KEYS
        }
    return decided

"""What the shell completes: plugins, presets, runs and settings, each by its beginning."""

import glob
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer


def plugin(kind: str | None) -> Callable[[str], list[tuple[str, str]]]:
    """Shell completion with the installed plugins of a kind, or of all."""

    def names(incomplete: str) -> list[tuple[str, str]]:
        from stage1.plugins import load_plugins

        records = load_plugins().components
        usable = [r for r in records if r.status == "ok" and kind in (None, r.kind)]
        return [(r.name, r.summary) for r in usable if r.name.startswith(incomplete)]

    return names


def preset(kind: str) -> Callable[[str], list[tuple[str, str]]]:
    """Shell completion with recipes or protocols."""

    def names(incomplete: str) -> list[tuple[str, str]]:
        from stage1.config.presets import PRESETS

        return [(p.name, p.summary) for p in PRESETS[kind].all() if p.name.startswith(incomplete)]

    return names


def one_of(choices: str, meaning: str) -> Any:
    """An option for one of `choices`, written `a|b`, which its help shows and the shell completes."""

    def matching(incomplete: str) -> list[str]:
        return [choice for choice in choices.split("|") if choice.startswith(incomplete)]

    return typer.Option(metavar=choices, autocompletion=matching, help=meaning)


def run(incomplete: str) -> list[str]:
    """Shell completion with runs: those under runs/, and whatever else begins like what is typed."""
    places = {*Path("runs").glob("*"), *Path().glob(f"{glob.escape(incomplete)}*")}
    found = [str(p) for p in places if (p / "config.yaml").is_file() or p.suffix in (".yaml", ".yml")]
    return sorted(name for name in found if name.startswith(incomplete))


def setting(incomplete: str) -> list[tuple[str, str]]:
    """Shell completion with the settings, `KEY=`, those of the default's plugins among them."""
    from stage1.config import RunConfig, flat
    from stage1.plugins import fully_resolved, load_plugins, resolve

    default = RunConfig()
    whole = fully_resolved(default, resolve(default, load_plugins()))
    tree = whole.model_dump(mode="json", exclude={"compressors"})
    first = {f"compressor.{key}": value for key, value in whole.compressors[0].options.items()}
    known = {**first, **flat(tree)}
    return [(f"{key}=", f"default: {value}") for key, value in known.items() if key.startswith(incomplete)]

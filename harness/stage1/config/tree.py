"""From YAML files, flags and `--set` texts to one validated configuration.

Precedence, lowest first: the defaults, a recipe, a YAML file, the command line's flags, `--set key=value`.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from stage1.bounded import OutOfBoundsError, load_yaml
from stage1.config.messages import validated
from stage1.config.settings import RunConfig, named, weighted
from stage1.errors import ConfigError, ConfigIssue, UsageError
from stage1.files import read_bytes


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UsageError: the file is missing, is not YAML, or holds no mapping.
    """
    try:
        content = load_yaml(read_bytes(path).decode())
    except OSError as error:
        raise UsageError(f"Cannot read configuration {path}: {error.strerror}.", "Check the path.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2024-99-99
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}, column {where.column + 1}" if where else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise UsageError(
            f"{path} is not valid YAML{line}: {problem}.",
            "`stage1 config show` prints a valid file to start from.",
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(
            f"{path} holds a {type(content).__name__}, not settings by name.",
            "`stage1 config show` prints a valid file to start from.",
        )
    return content


def parse_setting(text: str) -> tuple[list[str], Any]:
    """`a.b=c` as (["a", "b"], c); c is read as YAML: 8, true, null and [1, 2] are what they look like."""
    key, equals, value = text.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        raise UsageError(f"--set {text!r} is not KEY=VALUE.", "Write, for example, --set compressor.dim=64.")
    try:
        return path, load_yaml(value)
    except OutOfBoundsError as error:
        raise UsageError(f"--set {'.'.join(path)}: {error}.", "Shorten it.") from None
    except (yaml.YAMLError, ValueError):
        return path, value


def format_setting(value: Any) -> str:
    """A setting's value as the command line takes it."""
    if isinstance(value, dict | list):  # YAML needs few quotes; JSON writes numbers that both read alike
        flow = yaml.safe_dump(
            value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=sys.maxsize
        )
        return flow.strip()
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def parse_loss(text: str) -> tuple[str, dict[str, Any]]:
    """`cosine=0.1`, `kl=auto` or `kl=0.5@ramp:200` as name and settings; `recon` has weight 1."""
    name, equals, value = text.partition("=")
    remedy = "Write NAME, NAME=WEIGHT, NAME=auto or NAME=WEIGHT@ramp:STEPS, as in kl=0.5@ramp:200."
    if not name.strip():
        raise UsageError(f"--loss {text!r} names no loss.", remedy)
    choice = weighted(value if equals else 1.0)
    try:  # what is a number but not a valid one is told together with all that is wrong elsewhere
        if choice["weight"] != "auto":
            choice["weight"] = float(choice["weight"])
        if "ramp" in choice:
            choice["ramp"] = int(choice["ramp"])
    except ValueError:
        raise UsageError(f"--loss {text!r}: {value!r} is not a weight.", remedy) from None
    return name.strip(), choice


DEFAULTS: dict[str, str] = {
    "compressor": RunConfig.model_fields["compressors"].default[0].name,
    "adapter": RunConfig.model_fields["adapter"].default.name,
}
"""The plugin a section means when it names none."""


def listed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with all compressors in one list: `compressor: pca` is short for `compressors: [pca]`.

    Raises:
        UsageError: it says both.
    """
    tree = dict(tree)
    if (only := named(tree.pop("compressor", None))) is None:
        return tree
    if tree.get("compressors") is not None:
        raise UsageError(
            "The configuration has both `compressor` and `compressors`.",
            "Write one list, such as `compressors: [pca, {name: quantize, bits: 4}]`.",
        )
    return {**tree, "compressors": [only]}


def _choices(tree: dict[str, Any]) -> list[Any]:
    """The list of compressors in `tree`, which is put there where nothing is said."""
    choices = tree.setdefault("compressors", [DEFAULTS["compressor"]])
    if not isinstance(choices, list):
        raise UsageError(f"compressors is {choices!r}, not a list.", "Write `compressors: [pca]`.")
    choices[:] = map(_compressor, choices)
    return choices


def _compressor(value: Any) -> Any:
    """A compressor by name and options; one without a name is the default's."""
    value = named(value)
    return {"name": DEFAULTS["compressor"], **value} if isinstance(value, Mapping) else value


def _kept(wanted: Any, old: list[Any]) -> Any:
    """`wanted` names, each with the options that the next compressor of that name in `old` has."""
    if not isinstance(wanted, list):
        return wanted
    left, kept = list(old), []
    for choice in map(_compressor, wanted):
        same = next((c for c in left if isinstance(c, Mapping) and choice == {"name": c["name"]}), None)
        left = [c for c in left if c is not same]
        kept.append(choice if same is None else same)
    return kept


def _compressor_at(tree: dict[str, Any], path: list[str]) -> int | None:
    """Which compressor `path` begins with: `compressor` is the first, others go by place or by name."""
    if path[0] == "compressor":
        return 0
    choices = _choices(tree) if path[0] not in RunConfig.model_fields or path[1:] else []
    names = [choice["name"] if isinstance(choice, Mapping) else None for choice in choices]
    if path[0] == "compressors" and path[1:]:
        if path[1].isdecimal() and int(path[1]) < len(names):
            return int(path[1])
        raise UsageError(
            f"--set {'.'.join(path)}: there are {len(names)} compressors, compressors.0 is the first.",
            "Name one of them, or add it with --compressor.",
        )
    if path[0] in RunConfig.model_fields or names.count(path[0]) == 0:
        return None
    if names.count(path[0]) > 1:
        places = " or ".join(f"compressors.{i}" for i, name in enumerate(names) if name == path[0])
        raise UsageError(f"There are several compressors {path[0]!r}.", f"Say which: {places}.")
    return names.index(path[0])


def _assign(tree: dict[str, Any], path: list[str], value: Any) -> None:
    """Put `value` at `path`, as `--set` and flags name it."""
    at = _compressor_at(tree, path)
    if at is None:
        _put(tree, path, value)
        return
    choices, rest = _choices(tree), path[2:] if path[0] == "compressors" else path[1:]
    if rest == ["name"] and isinstance(choices[at], Mapping) and choices[at]["name"] == value:
        return  # another plugin's options would be none of its own
    if not rest or rest == ["name"]:
        choices[at] = named(value)
    else:
        _put({"compressor": choices[at]}, ["compressor", *rest], value)


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for depth, key in enumerate(path[:-1]):
        child = tree.get(key)
        if depth == 0 and key in ("model", "data", "adapter"):
            child = named(child)  # `adapter: mlp` is short for `adapter: {name: mlp}`
        elif path[:depth] in (["losses"], ["then", "losses"]):
            child = weighted(child)  # `recon: 0.1` is short for `recon: {weight: 0.1}`
        child = {} if child is None else child
        if not isinstance(child, dict):
            where = ".".join(path[: depth + 1])
            raise UsageError(
                f"--set {'.'.join(path)}: {where} holds a value, not options.",
                f"Set {where} itself, or correct the configuration file.",
            )
        tree[key] = child
        tree = child
    tree[path[-1]] = value


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The tree `base` with what `over` says instead.

    Sections are merged key by key; compressors, losses, and a section that names its plugin, replace what
    was there.
    """
    tree = listed(base)
    for key, value in listed(over).items():
        old = tree.get(key)
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and key != "losses"
            and "name" not in value
        ):
            value = overlay(old, value)
        tree[key] = value
    return tree


def flat(tree: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by their path: `{"a": {"b": 1}}` as `{"a.b": 1}`."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        leaves |= (
            flat(value, separator, f"{path}{separator}") if isinstance(value, Mapping) else {path: value}
        )
    return leaves


ELSEWHERE = {"output", "device", "log_with", "compressors"}
"""Settings that say where a run was made and not what it is, and what is said in another way."""


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Every setting by its dotted path, as `--set` takes it; a plugin's name by the place it takes."""
    tree = config.model_dump(mode="json", exclude=ELSEWHERE)
    chosen = [choice.model_dump(mode="json") for choice in config.compressors]
    parts = dict(zip(config.compressor_paths, chosen, strict=True))
    leaves = {**flat(parts), **flat(tree)}
    return {key.removesuffix(".name"): value for key, value in leaves.items()}


def merge(file: Mapping[str, Any], flags: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """One tree from a YAML file's, the flags given (dotted path → value) and the `--set` texts.

    A flag that names another plugin drops the options that the file gave to the one it replaces; losses in a
    file or a flag replace the default objective, and `--set losses.NAME…` adds to the objective there is.
    The flag `compressors` names all of them; one that the file has too keeps its options. `compressor`
    stands for the first. A flag such as `model` or `adapter` whose value is a name chooses it, as
    `model.name` does; a path is its text.
    """
    flags = {key: str(value) if isinstance(value, PathLike) else value for key, value in flags.items()}
    by_name = ("model", "data", "compressor", "adapter")
    flags = {f"{k}.name" if k in by_name and isinstance(v, str) else k: v for k, v in flags.items()}
    # An empty section, all of whose lines are commented out, reads as null: it leaves the defaults.
    tree: dict[str, Any] = listed({k: deepcopy(v) for k, v in file.items() if v is not None})
    choices = ("adapter.name", "compressors")  # before the options of what they choose, in whatever order
    for dotted, value in sorted(flags.items(), key=lambda flag: flag[0] not in choices):
        if dotted == "adapter.name":
            old = named(tree.get("adapter"))
            if not isinstance(old, dict) or old.get("name", DEFAULTS["adapter"]) != value:
                tree["adapter"] = {}
        if dotted == "compressors":
            old = tree.get("compressors", [])
            value = _kept(value, [*map(_compressor, old)] if isinstance(old, list) else [])
        _assign(tree, dotted.split("."), deepcopy(value))
    for text in settings:
        path, value = parse_setting(text)
        if path[0] == "losses" and len(path) > 1:
            tree.setdefault("losses", dict.fromkeys(RunConfig.model_fields["losses"].default))
        _assign(tree, path, value)
    if isinstance(tree.get("compressors"), list):
        _choices(tree)
    if isinstance(tree.get("adapter"), dict):
        tree["adapter"].setdefault("name", DEFAULTS["adapter"])
    return tree


PLACES = ("model.name", "model.revision", "data.name", "init", "output")
"""Settings that name a file, a folder or a repository, and may hold bytes that are no text."""


def validate(tree: Mapping[str, Any]) -> RunConfig:
    """The configuration in `tree`.

    Raises:
        ConfigError: with every issue found, each with its path and the choices.
        UsageError: it has both `compressor` and `compressors`.
    """
    places = {place.partition(".")[0] for place in PLACES}
    texts = {key: value for key, value in flat(tree).items() if key.partition(".")[0] not in places}
    if lone := [key for key, value in texts.items() if not _is_text([key, value])]:
        raise ConfigError([ConfigIssue(key, "it is no text in UTF-8: half of a pair.") for key in lone])
    config = validated(RunConfig, listed(tree))
    values = flat(config.model_dump(mode="json"))
    if nul := [key for key in PLACES if "\0" in (values[key] or "")]:
        raise ConfigError([ConfigIssue(key, "it holds a NUL character, which no name may.") for key in nul])
    return config


def _is_text(value: Any) -> bool:
    """Whether all texts in it can be written: a surrogate, which a shell makes of a bad byte, cannot."""
    try:
        json.dumps(value, ensure_ascii=False, skipkeys=True, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True

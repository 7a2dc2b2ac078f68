"""The grid of a sweep: every combination of some settings' values, for several seeds."""

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from stage1.bounded import load_yaml
from stage1.config import RunConfig, format_setting, granted
from stage1.config.presets import PRESETS, from_presets
from stage1.errors import ConfigError, ConfigIssue, UsageError
from stage1.files import safe_name
from stage1.llm.location import locate
from stage1.llm.table import table_width
from stage1.plugins import Registry, fully_resolved, load_plugins, resolve
from stage1.plugins.interfaces import SizeConfig
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.session import found_anywhere

OWN = {"seed": "--seeds", "output": "--output"}
"""Settings that the sweep gives its runs by itself, and the options that say how."""


class Axis(NamedTuple):
    """A setting, or one of `PRESETS`, and the values it takes."""

    key: str
    values: list[Any]

    @classmethod
    def parse(cls, text: str) -> "Axis":
        """`compressor.ratio=4,8`; values are read as YAML, like those of `--set`.

        Raises:
            UsageError: it is no list of different values by a key.
        """
        key, _, listed = text.partition("=")
        remedy = "Write KEY=V1,V2,…, for example --over compressor.ratio=4,8,16."
        try:
            read = load_yaml(f"[{listed}]")
            values = json.loads(json.dumps(read, default=str, allow_nan=False))  # a date is a text to us
        except (yaml.YAMLError, ValueError):
            raise UsageError(f"--over {text!r} is not a list of values.", remedy) from None
        if not all(part.strip() for part in key.split(".")) or not values:
            raise UsageError(f"--over {text!r} is not KEY=V1,V2,….", remedy)
        shown = [format_setting(value) for value in values]
        if len(set(shown)) < len(shown):
            raise UsageError(f"--over {text!r} names a value twice.", "Name each once.")
        return cls(key.strip(), values)


class Cell(NamedTuple):
    """One run of the grid."""

    settings: dict[str, Any]  # axis → value; of a ratio, what the width makes of it
    seed: int
    config: RunConfig  # fully resolved; its output is the run's folder
    run: Run  # need not exist yet

    @property
    def name(self) -> str:
        """`ratio=8 recipe=phase2 seed=1`."""
        return label({**self.settings, "seed": self.seed})


def label(settings: Mapping[str, Any]) -> str:
    """Settings as people read them: by the last part of their path, where that says which is meant."""
    short = {key: key.removesuffix(".name").rpartition(".")[2] for key in settings}
    clear = len(set(short.values())) == len(short)
    return " ".join(
        f"{short[key] if clear else key}={format_setting(value)}" for key, value in settings.items()
    )


def folder_name(settings: Mapping[str, Any]) -> str:
    """A file name for `label`, of its own for every settings."""
    return safe_name(label(settings).replace(" ", "_"))


def plan(
    file: Mapping[str, Any],
    settings: Sequence[str],
    axes: Sequence[Axis],
    seeds: Sequence[int],
    folder: Path,
    *,
    flags: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """The cells of the grid, all of them checked, in the order in which they are run.

    Args:
        file: a configuration file's settings, for every cell.
        settings: `--set` texts for every cell.
        axes: what varies. A value precedes `settings` like a flag where it chooses a plugin, and overrides
            the file like `--set` otherwise. `compressor` is the first one and leaves those behind it as they
            are; `compressors=[pca],[pca, quantize]` varies them all.
        seeds: each cell is run with every one.
        folder: where the runs' folders go.
        flags: dotted path → value of what was typed for every cell; recipes and protocols too, by what they
            are (`PRESETS`), which are in `file` already.

    Raises:
        ConfigError: cells that are no valid configuration, all of them with all of their issues.
        UsageError: an axis or a seed is given twice, or a cell's folder holds another run.
    """
    flags = dict(flags or {})
    _refuse_doubles([*settings, *flags], axes, seeds)
    flags = {key: value for key, value in flags.items() if key not in PRESETS}
    registry = load_plugins()
    cells: list[Cell] = []
    found: dict[ConfigIssue, list[str]] = {}
    widths: dict[str, int] = {}
    asked: dict[str, str] = {}  # a cell's name → the settings that it was asked by
    for values in product(*(axis.values for axis in axes)):
        chosen = dict(zip([axis.key for axis in axes], values, strict=True))
        for seed in seeds:
            whole = {**chosen, "seed": seed}
            try:
                config = _configuration(file, settings, {**flags, "seed": seed}, chosen, registry)
                achieved = _achieved(chosen, config, registry, widths)
                run = Run(folder / folder_name({**achieved, "seed": seed}))
                cells.append(Cell(achieved, seed, config.model_copy(update={"output": run.path}), run))
                first = asked.setdefault(cells[-1].name, label(whole))
                if first != label(whole):
                    raise UsageError(f"It comes to {cells[-1].name}, as {first} does.", "Leave one out.")
            except ConfigError as error:
                for issue in error.issues:
                    found.setdefault(issue, []).append(label(whole))
            except UsageError as error:
                found.setdefault(ConfigIssue("", str(error)), []).append(label(whole))
    if found:
        raise ConfigError([_at(names, issue) for issue, names in found.items()])
    for cell in cells:
        _refuse_another_run(cell)
    return cells


def _refuse_doubles(settings: Sequence[str], axes: Sequence[Axis], seeds: Sequence[int]) -> None:
    keys = [axis.key.removesuffix(".name") for axis in axes]
    fixed = {text.partition("=")[0].strip().removesuffix(".name") for text in settings}
    for key in keys:
        if key in OWN:
            raise UsageError(f"--over {key} cannot be used.", f"Use {OWN[key]}.")
        if keys.count(key) > 1 or key in fixed:
            where = "--set, flag or file" if key in PRESETS else "--set or flag"
            raise UsageError(f"{key} is given twice.", f"Name it in one --over, and in no {where}.")
    if both := fixed & OWN.keys():
        key = min(both)
        raise UsageError(f"--set {key} cannot be used in a sweep.", f"Use {OWN[key]}.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds {','.join(map(str, seeds))} are not different seeds.", "Write 0,1,2.")


def _configuration(
    file: Mapping[str, Any],
    settings: Sequence[str],
    flags: dict[str, Any],
    chosen: Mapping[str, Any],
    registry: Registry,
) -> RunConfig:
    inner = []
    for key, value in chosen.items():
        if key in PRESETS:
            file = from_presets(file, {}, **{key: str(value)})
        elif "." in key.removesuffix(".name"):
            inner.append(f"{key}={json.dumps(value)}")
        else:
            flags[key] = value
    config = granted(file, flags, [*settings, *inner])
    return found_anywhere(fully_resolved(config, resolve(config, registry)))


def _achieved(
    chosen: Mapping[str, Any], config: RunConfig, registry: Registry, widths: dict[str, int]
) -> dict[str, Any]:
    """`chosen`, in which a ratio that no code has for want of whole dimensions is the one that comes of it.

    `widths` remembers the width of each model's embeddings.
    """
    achieved = dict(chosen)
    if not any(key.endswith(".ratio") for key in chosen):
        return achieved
    name = config.model.name
    if name not in widths:
        source = locate(config.model, weights="table", progress=Progress())
        widths[name] = table_width(source, config.model.trust_remote_code)
    width = widths[name]
    for place, component in enumerate(resolve(config, registry).compressors):
        if not isinstance(component.config, SizeConfig):
            break  # how wide its code is, only it knows
        ratio = component.config.achieved(width)
        for key in {f"{component.path}.ratio", f"compressors.{place}.ratio"} & chosen.keys():
            if ratio != component.config.ratio:
                achieved[key] = int(ratio) if float(ratio).is_integer() else ratio
        width = component.config.width(width)
    return achieved


def _at(names: list[str], issue: ConfigIssue) -> ConfigIssue:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return ConfigIssue(f"{names[0]}{more}", str(issue))


def _refuse_another_run(cell: Cell) -> None:
    if not (cell.run.path / "config.yaml").exists():
        return
    elsewhere: Any = {"output": True, "device": True, "log_with": True, "model": {"trust_remote_code"}}
    try:
        there, ours = cell.run.config, cell.config
    except UsageError:  # damaged: that cell fails when its turn comes, and says so
        return
    if there.model_dump(exclude=elsewhere) != ours.model_dump(exclude=elsewhere):
        raise UsageError(
            f"{cell.run.path} holds a run with other settings.", "Use another --output for another sweep."
        )


def groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells that differ only in their seed."""
    by: dict[str, list[Cell]] = {}
    for cell in cells:
        by.setdefault(label(cell.settings), []).append(cell)
    return list(by.values())

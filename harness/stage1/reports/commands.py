"""What is worth typing next: whole commands that run as they are."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from stage1.config import RunConfig, flat, format_setting
from stage1.plugins import Registry, load_plugins
from stage1.plugins.interfaces import SizeConfig
from stage1.runs.run import Run

FLAGS = {
    "model.name": "--model",
    "model.revision": "--revision",
    "data.name": "--data",
    "adapter.name": "--adapter",
    "magnitude": "--magnitude",
    "scope": "--scope",
    "prompt.shots": "--shots",
    "init": "--init",
    "seed": "--seed",
    "dtype": "--dtype",
}
"""Settings that have a flag of their own, with a value."""

SHORT = {
    "compressor.ratio": "--ratio",
    "compressor.dim": "--dim",
    "train.steps": "--steps",
    "eval.limit": "--limit",
    "eval.batch_size": "--batch-size",
}
"""Settings that `--set` reaches too, and that everybody sets."""

SWITCHES = {
    "raw_anchor": ("--raw-anchor", "--no-raw-anchor"),
    "keep_special": ("--keep-special", "--no-keep-special"),
    "prompt.chat": ("--chat", "--no-chat"),
    "model.trust_remote_code": ("--trust-remote-code", "--no-trust-remote-code"),
}
"""Settings that are on or off."""

ELSEWHERE = ("output", "device", "log_with", "compressors", "adapter", "losses")
"""Settings that a repeated command need not have, or that are written in another way."""

POOR = 30.0
"""F1 of the text itself under which the protocol deserves a second thought."""


def next_commands(run: Run, results: Mapping[str, Any] | None) -> Iterator[str]:
    """The commands that a colleague would type after this run, the most useful first."""
    config, folder, registry = run.config, shlex.quote(str(run.path)), load_plugins()
    if results is None:
        yield f"stage1 eval {folder}"
        return
    verdict, text = results["verdict"], next(row for row in results["rows"] if row["row"] == "text")
    level = verdict["level"]
    if level == "undecided":
        yield f"stage1 eval {folder} --limit {verdict['questions_needed']}"
    if not (config.prompt.shots or config.prompt.chat) and (level == "no ceiling" or text["f1"] < POOR):
        shots = config.prompt.model_copy(update={"shots": 3})
        yield train_command(config.model_copy(update={"prompt": shots}), registry)
    if level == "not converged":
        more = config.train.model_copy(update={"steps": 4 * config.train.steps})
        yield train_command(config.model_copy(update={"train": more}), registry)
    if level in ("protocol broken", "too lossy, or broken", "needs generation-aware training"):
        yield f"stage1 diagnose {folder}"
    if level in ("too lossy, or broken", "needs generation-aware training"):
        yield f"stage1 train --recipe distill --init {folder}"
        yield from _other_ratio(config, 0.5, registry, results["size"]["embed_dim"])
    if level == "reconstruction suffices":
        yield from _other_ratio(config, 2.0, registry, results["size"]["embed_dim"])
        yield f"stage1 eval {folder}"


def _other_ratio(config: RunConfig, factor: float, registry: Registry, width: int) -> Iterator[str]:
    """The same run with a code that many times as small, where the first compressor has a ratio.

    `width` is that of the embeddings; a code has a dimension at least, and no more than they have.
    """
    first, *others = config.compressors
    dim = first.options.get("dim")
    if "ratio" not in first.options:
        return
    ratio = SizeConfig(ratio=first.options["ratio"], dim=dim).achieved(width)
    if not 1 <= ratio * factor <= width:
        return
    changed = {"ratio": ratio * factor} if dim is None else {"dim": max(1, round(dim / factor))}
    other = type(first)(name=first.name, **{**first.options, **changed})
    # Nothing that was trained fits a code of another width.
    yield train_command(config.model_copy(update={"compressors": [other, *others], "init": None}), registry)


def train_command(config: RunConfig, registry: Registry) -> str:
    """`stage1 train …` that makes a run of `config`, with no more than what differs from the defaults."""
    ours, usual = (flat(c.model_dump(mode="json", exclude={"then"})) for c in (config, RunConfig()))
    words: list[str] = []
    sets = list(_options(config, registry))
    for key, value in ours.items():
        if value == usual.get(key) or (key.startswith(ELSEWHERE) and key not in FLAGS):
            continue
        if key in SWITCHES:
            words.append(SWITCHES[key][not value])
        elif key in FLAGS:
            words += [FLAGS[key], str(value)]
        else:
            sets.append((key, value))
    words += _plugins(config)
    if config.then is not None:
        sets.append(("then", config.then.model_dump(mode="json")))
    for key, value in sets:
        words += [SHORT[key], _setting(value)] if key in SHORT else ["--set", f"{key}={_setting(value)}"]
    return shlex.join(["stage1", "train", *words])


def _plugins(config: RunConfig) -> Iterator[str]:
    if config.compressor_names != RunConfig().compressor_names:
        for name in config.compressor_names:
            yield from ("--compressor", name)
    losses = {name: (choice.weight, choice.ramp) for name, choice in config.losses.items()}
    if losses != {"recon": (1.0, 0)}:
        for name, (weight, ramp) in losses.items():
            shown = weight if weight == "auto" else f"{weight:g}"
            yield from ("--loss", f"{name}={shown}" + (f"@ramp:{ramp}" if ramp else ""))


def _options(config: RunConfig, registry: Registry) -> Iterator[tuple[str, Any]]:
    """The plugins' options that are not their defaults."""
    paths = zip(config.compressor_paths, config.compressors, strict=True)
    chosen = [(path, "compressor", choice.name, choice.options) for path, choice in paths]
    chosen.append(("adapter", "adapter", config.adapter.name, config.adapter.options))
    chosen += [(f"losses.{name}", "loss", name, choice.options) for name, choice in config.losses.items()]
    for path, kind, name, options in chosen:
        usual = registry.get(kind, name).Config.model_validate({}).model_dump(mode="json")  # type: ignore[call-overload]
        for key, value in options.items():
            if value != usual.get(key):
                yield f"{path}.{key}", value


def _setting(value: Any) -> str:
    """A value as `--set` reads it back."""
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    if isinstance(value, str) and not value.isprintable():
        return json.dumps(value, ensure_ascii=False)
    return format_setting(value)

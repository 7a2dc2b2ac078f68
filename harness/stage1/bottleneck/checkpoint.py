"""A bottleneck on disk: `bottleneck.json`, which names its plugins, and `bottleneck.safetensors`."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stage1.bounded import load_json
from stage1.config import ComponentChoice, ModelConfig, RunConfig
from stage1.errors import ConfigError, UsageError
from stage1.files import to_json
from stage1.plugins import Registry, Resolved, dump_options, load_plugins, resolve
from stage1.plugins.interfaces import Adapter, Compressor
from stage1.plugins.registry import DISTRIBUTION, LONGEST, VERSION


def component_record(component: Compressor | Adapter, registry: Registry) -> dict[str, Any]:
    """A component as bottleneck.json names it."""
    distribution, version = registry.owner(type(component))
    return {
        "name": component.name,
        "distribution": distribution,
        "version": version,
        "config": dump_options(component.config),
    }


def digest(record: dict[str, Any], tensors: bytes) -> str:
    """A hash of a record, its own hash left out, and of the weights beside it."""
    text = json.dumps({k: v for k, v in record.items() if k != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode() + b"\0" + hashlib.sha256(tensors).digest()).hexdigest()


def republished(folder: Path, cleaned: Callable[[Mapping[str, Any]], dict[str, Any]]) -> bytes:
    """The bottleneck.json in `folder`, as `cleaned` leaves its record."""
    record = cleaned(read_checkpoint(folder)[0])
    record["sha256"] = digest(record, (folder / "bottleneck.safetensors").read_bytes())
    return to_json(record).encode()


class _Part(BaseModel):
    """A component as bottleneck.json names it; a stranger's package name may end up in a command."""

    name: str = Field(max_length=200)
    distribution: str = Field(pattern=DISTRIBUTION, max_length=LONGEST)
    version: str = Field(pattern=VERSION, max_length=LONGEST)
    config: dict[str, Any]


class _Record(BaseModel):
    """What bottleneck.json holds."""

    compressors: list[_Part] = Field(min_length=1)
    adapter: _Part
    frozen: list[str]
    magnitude: Literal["free", "vocab", "sent"]
    embed_dim: int = Field(gt=0)
    model: ModelConfig
    table_sha256: str


def damaged(folder: Path, why: str) -> UsageError:
    """The error to show where a checkpoint cannot be used."""
    return UsageError(
        f"The checkpoint in {folder} cannot be used: {why}",
        "Copy it again from where it was made, or train it anew.",
    )


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The record and the weights in `folder`.

    Raises:
        UsageError: they are missing, cut, edited or of another schema.
    """
    for name in ("bottleneck.json", "bottleneck.safetensors"):
        if not (folder / name).is_file():
            raise UsageError(
                f"{folder} holds no trained bottleneck: {name} is missing.",
                f"Finish the run with `stage1 train --resume --output {folder}`, or pass another folder.",
            )
    try:
        record = load_json((folder / "bottleneck.json").read_bytes())
        if record["schema"] != 1:
            raise damaged(folder, f"its schema is {record['schema']}, this version of stage1 reads 1.")
        found = digest(record, (folder / "bottleneck.safetensors").read_bytes())
        if found != record["sha256"]:
            raise damaged(folder, "it is truncated or was edited (its hash does not match).")
        _Record.model_validate(record)
        return record, load_file(folder / "bottleneck.safetensors")
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise damaged(folder, f"it is truncated or was edited ({type(error).__name__}).") from None


def resolve_record(record: dict[str, Any], folder: Path) -> Resolved:
    """The plugins that a record names, with their options.

    Raises:
        UsageError: one of them is not installed, or does not take these options.
    """
    registry = load_plugins()

    def installed(kind: str, part: Mapping[str, Any]) -> str:
        name = registry.qualified(kind, part["name"], part["distribution"])
        if name is None:
            raise UsageError(
                f"{folder} needs the {kind} {part['name']!r} of package {part['distribution']!r}, which is "
                "not installed or failed to load.",
                f"pip install {part['distribution']}=={part['version']}   (see `stage1 plugins list`)",
            )
        return name

    def choice(kind: str, part: Mapping[str, Any]) -> ComponentChoice:
        return ComponentChoice(name=installed(kind, part), **part["config"])

    try:
        config = RunConfig(
            compressors=[choice("compressor", part) for part in record["compressors"]],
            adapter=choice("adapter", record["adapter"]),
        )
        # The default objective is none of the checkpoint's business, and need not go with its compressor.
        return resolve(config.model_copy(update={"losses": {}}), registry)
    except (ConfigError, ValidationError) as error:
        raise damaged(folder, str(error).splitlines()[0]) from None

"""The weight files of a model folder, opened one by one: safetensors, in shards or in one file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from stage1.bounded import read_json
from stage1.errors import UsageError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
GGUF = ".gguf"
"""How the name of a model ends that is one file of llama.cpp's format."""


def is_gguf(source: Path) -> bool:
    """Whether a model is such a file, not a folder."""
    return source.suffix.lower() == GGUF


def check_folder(folder: Path) -> None:
    """Raise UsageError unless `folder` has a configuration and safe weights."""
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} is not a model folder: it has no config.json.",
            _other_format(folder) or "Pass a folder as transformers' save_pretrained writes it.",
        )
    if (folder / SINGLE).is_file() or (folder / INDEX).is_file():
        return
    pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
    if pickled:
        raise UsageError(
            f"{folder} has only pickled weights ({pickled[0]}), which can run code when they are loaded.",
            "Convert them: load the model with transformers and save_pretrained() it to a new folder.",
        )
    raise UsageError(
        f"{folder} has no weights: neither {SINGLE} nor {INDEX}.",
        _other_format(folder) or "Download or copy the model again.",
    )


def _other_format(folder: Path) -> str:
    files = sorted(path for path in folder.glob("*") if is_gguf(path))
    return f"A GGUF model is passed as the file itself: {files[0]}" if files else ""


def read_index(folder: Path) -> dict[str, str]:
    """Parameter name → file name, from the index of a sharded model."""
    try:
        weight_map: dict[str, str] = read_json((folder / INDEX).read_bytes())["weight_map"]
        return dict(weight_map)
    except (OSError, ValueError, KeyError, TypeError):
        raise damaged(folder / INDEX) from None


def weight_map(folder: Path) -> dict[str, str]:
    """Parameter name → file name, sharded or not."""
    if (folder / INDEX).is_file():
        return read_index(folder)
    check_folder(folder)
    with opened(folder / SINGLE) as file:
        return dict.fromkeys(file.keys(), SINGLE)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, open for reading."""
    if not path.is_file():
        raise UsageError(f"The model is incomplete: {path} is missing.", "Download or copy it again.")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError):
        raise damaged(path) from None


def damaged(path: Path) -> UsageError:
    """The error to raise for a file that cannot be read."""
    return UsageError(f"{path} is truncated or damaged.", "Download or copy it again.")

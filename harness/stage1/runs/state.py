"""A run's resumable state: weights, optimiser and step in one file, so that they cannot disagree."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, uint8

from stage1.errors import UsageError
from stage1.files import write_atomic


class State:
    """The file `path`, which is there while a training is not finished."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replace it by tensors and JSON facts."""
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        text = json.dumps(facts)
        write_atomic(self.path, save(whole, {"facts": text, "sha256": _digest(whole, text)}))

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved last, or None where the run had not come that far.

        Raises:
            UsageError: the file is damaged, by a single bit.
        """
        if not os.path.lexists(self.path):
            return None
        with self._opened() as (file, text):
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if file.metadata()["sha256"] != _digest(tensors, text):
                raise ValueError
            return tensors, json.loads(text)

    @property
    def step(self) -> int:
        """Optimiser steps that were done when it was saved; 0 where it was not.

        Raises:
            UsageError: the file is damaged.
        """
        if not os.path.lexists(self.path):
            return 0
        with self._opened() as (_, text):
            return int(json.loads(text)["step"])

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, str]]:
        try:
            if not self.path.is_file():  # opening a pipe would wait for ever
                raise ValueError
            with safe_open(self.path, framework="pt") as file:
                yield file, file.metadata()["facts"]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            raise UsageError(
                f"The resumable state {self.path} is damaged.", "Remove that file to start the run over."
            ) from None

    def drop(self) -> None:
        """Training has ended; nothing is left to resume."""
        self.path.unlink(missing_ok=True)


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(uint8).numpy().data)
    return digest.hexdigest()

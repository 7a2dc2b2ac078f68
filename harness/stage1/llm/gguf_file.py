"""A model in one file of llama.cpp's format: what it is made of, and its embedding table without the rest.

transformers loads the model itself (`gguf_file`); here is what it is not asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils.import_utils import is_gguf_available

from stage1.errors import UsageError
from stage1.llm.weights import damaged

TABLE = "token_embd.weight"
"""The input embeddings, whatever the model's family calls them."""


def check_gguf(file: Path) -> None:
    """Raise UsageError unless `file` is a GGUF file of a kind that transformers reads here."""
    if not is_gguf_available():
        raise UsageError(f"Reading {file} needs the package gguf.", "pip install 'stage1[gguf]'")
    if not file.is_file():
        raise UsageError(f"The model {file} does not exist.", "Check the path.")
    with file.open("rb") as content:
        if content.read(4) != b"GGUF":
            raise UsageError(f"{file} is not a GGUF file.", "Download or copy it again.")


@lru_cache(maxsize=1)
def _reading(file: Path, _size: int, _changed: int) -> Any:
    from gguf.gguf_reader import GGUFReader

    return GGUFReader(file)


def _read(file: str | Path, *_: Any) -> Any:
    """gguf's view of `file`. Its tokens and merges, a hundred thousand, take seconds: they are read once."""
    state = Path(file).stat()
    return _reading(Path(file), state.st_size, state.st_mtime_ns)


def forget() -> None:
    """Let go of the file that was read last."""
    _reading.cache_clear()


@contextmanager
def read_once() -> Iterator[None]:
    """Let transformers, which reads a file anew for configuration, tokenizer and weights, share one reading.

    The names of the tensors, too, are worked out once and not for each module of the model.
    """
    if not is_gguf_available():
        yield
        return
    import gguf

    module: Any = gguf
    before = module.GGUFReader, module.get_tensor_name_map
    module.GGUFReader, module.get_tensor_name_map = _read, lru_cache(before[1])
    try:
        yield
    finally:
        module.GGUFReader, module.get_tensor_name_map = before


def read_gguf_table(file: Path) -> Tensor:
    """The input embeddings [V, D] in float32, as transformers dequantises them; no other weight is read.

    Raises:
        UsageError: there is no table in the file, or it is stored in a way that cannot be read.
    """
    import gguf

    try:
        reader = _read(file.resolve())
    except Exception:  # it follows offsets to wherever they point
        raise damaged(file) from None
    [table] = [tensor for tensor in reader.tensors if tensor.name == TABLE] or [None]
    if table is None:
        raise UsageError(f"{file} holds no input embeddings ({TABLE}).", "Pass the file of a language model.")
    try:
        values = gguf.dequantize(table.data, table.tensor_type)
    except NotImplementedError:
        raise UsageError(
            f"{file}: {TABLE} is stored as {table.tensor_type.name}, which cannot be read.",
            "Pass a file with other quantisation: Q4_K_M, Q8_0, F16 are common.",
        ) from None
    return torch.from_numpy(values.copy())

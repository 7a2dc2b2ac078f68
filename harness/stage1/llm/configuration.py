"""A model's configuration, and errors that name the file and the field that are wrong."""

import copy
import re
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from stage1.bounded import read_json
from stage1.errors import UsageError
from stage1.llm.gguf_file import read_once
from stage1.llm.quiet import quiet_transformers
from stage1.llm.weights import is_gguf


def origin(source: Path, trust_remote_code: bool) -> tuple[str, dict[str, Any]]:
    """Folder and options with which `from_pretrained` reads the folder or GGUF file `source`, offline.

    A GGUF file is a whole model: the file is named from an empty folder, so that a tokenizer which happens
    to lie beside it, that of another model perhaps, is not read in place of its own.
    """
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    if not is_gguf(source):
        return str(source), options
    return _empty_folder().name, {**options, "gguf_file": str(source.resolve())}


@lru_cache(maxsize=1)
def _empty_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="stage1-")  # it goes with the process


def read_config(source: Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of the model in `source`: a copy of one's own.

    Raises:
        UsageError: it cannot be read, or it is one of a kind that stage1 does not support.
    """
    file = config_file(source)
    if not file.is_file():
        raise UsageError(f"{file} is missing.", "Download or copy the model again.")
    state = file.stat()
    return copy.deepcopy(_read(source, trust_remote_code, state.st_mtime_ns, state.st_size))


def config_file(source: Path) -> Path:
    """Where the configuration of the model in `source` is written."""
    return source if is_gguf(source) else source / "config.json"


@lru_cache(maxsize=16)  # a GGUF file takes seconds, and several parts ask
def _read(source: Path, trust_remote_code: bool, _changed: int, _size: int) -> PreTrainedConfig:
    folder, options = origin(source, trust_remote_code)
    try:
        with quiet_transformers(), read_once():
            config: PreTrainedConfig = AutoConfig.from_pretrained(folder, **options)
    except Exception as error:  # transformers' own checks raise whatever they meet
        raise unusable(source, error) from None
    _refuse_quantised(source, config)
    return config


def _refuse_quantised(source: Path, config: PreTrainedConfig) -> None:
    quantised = getattr(config.get_text_config(), "quantization_config", None) or getattr(
        config, "quantization_config", None
    )
    if quantised:
        method = quantised.get("quant_method", "?") if isinstance(quantised, dict) else "?"
        raise UsageError(
            f"{config_file(source)}: quantization_config: {method} weights are not supported.",
            "Pass an unquantised copy of the model, or a GGUF file.",
        )


def context_length(source: Path, trust_remote_code: bool = False) -> int | None:
    """Tokens that the model was made for, prompt and answer together; None where it does not say."""
    text = read_config(source, trust_remote_code).get_text_config()
    length = getattr(text, "max_position_embeddings", None)
    return length if isinstance(length, int) else None


def unusable(source: Path, error: Exception) -> UsageError:
    """What to say of a configuration that transformers rejects with `error`."""
    if "trust_remote_code" in str(error):
        return UsageError(
            f"{source} needs Python code of its own, which is not run by default.",
            "If you trust its author: --trust-remote-code, or --set model.trust_remote_code=true.",
        )
    file = config_file(source)
    field, reason = _blame(file, error)
    at = f"{file}: {field}" if field else f"{file} cannot be used"
    return UsageError(f"{at}: {reason}", "Correct it, or pass a causal language model that transformers has.")


def _blame(file: Path, error: Exception) -> tuple[str, str]:
    """The field of the configuration that `error` is about, dotted, or "", and the reason, in a line each."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    strict = lines[0].startswith(("Validation error", "Class validation error"))
    reason = lines[-1].partition("Error: ")[2] or lines[-1] if strict else lines[0]
    try:
        fields = [] if is_gguf(file) else _leaves(read_json(file.read_bytes()))
    except (OSError, ValueError):
        return "", reason
    if isinstance(error, KeyError) and error.args:  # a dictionary lacks what a field says
        for path, value in fields:
            if value == error.args[0]:
                return path, f"{value!r} is unknown"
    words = set(re.findall(r"[\w.]+", lines[0] + reason))
    # A missing attention package does not say which field asked for it.
    about_attention = isinstance(error, ImportError) and "ttention" in reason
    for path, value in fields:
        name = path.rpartition(".")[2]
        said = isinstance(value, str) and words & {value, f"torch.{value}"}
        if name in words or name.replace("_", " ") in reason or said:
            return path, reason
        if about_attention and name.endswith("attn_implementation"):
            return path, reason
    return "", reason


def _leaves(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    """The fields of a configuration, dotted, and their values."""
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{path}.{key}" if path else key)]

"""The frozen LLM: where it lies, its tokenizer, its embedding table without the rest, and the whole.

A model is a folder as Hugging Face transformers writes it (config.json, safetensors, tokenizer.json). The
embedded one, a folder of the user's and a download from the Hub are all loaded by the same code.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from stage1.config import ModelConfig
from stage1.errors import Stage1Error, UsageError, suggest
from stage1.files import expanded
from stage1.hub import download
from stage1.llm.attention import forbid_cudnn_attention
from stage1.llm.tiny import MODEL_DIR
from stage1.progress import Progress

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SMALL_FILES = ["*.json", "tokenizer*", "*.model"]
"""What a Hub repository holds beside the weights."""

CAUSAL_LM: Any = AutoModelForCausalLM  # its methods carry no types
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# -- where the model lies ----------------------------------------------------------------------------------


def locate(model: ModelConfig, *, weights: Literal["table", "all"], progress: Progress) -> Path:
    """The model's folder: the embedded one, the user's, or a download from the Hub.

    Args:
        model: its `name` is `tiny`, a folder or a Hub id.
        weights: what a download must bring: the shard that holds the embedding table, or all of them.
        progress: told of a download.

    Raises:
        UsageError: there is no such model, it is gated or out of reach, or it has no safetensors.
    """
    if model.name == "tiny":
        return MODEL_DIR
    folder = expanded(model.name)
    if folder.is_dir():
        _check_folder(folder)
        return folder
    if folder.exists() or _looks_like_a_path(model.name):
        there = "is not a folder" if folder.exists() else "does not exist"
        raise UsageError(
            f"The model {model.name} {there}.",
            "Pass a folder with config.json, tokenizer.json and safetensors, a Hub id (owner/name), or tiny.",
        )
    if "/" not in model.name and get_close_matches(model.name.lower(), ["tiny"]):
        raise UsageError(
            f"Unknown model {model.name!r}: did you mean 'tiny'?",
            "Or pass a folder, or a Hub id (owner/name).",
        )
    return _fetch(model, weights, progress)


def _looks_like_a_path(name: str) -> bool:
    parent = Path(name).parent
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or name.count("/") > 1
        or (parent != Path() and parent.is_dir())
    )


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} is not a model folder: it has no config.json.",
            "Pass a folder as transformers' save_pretrained writes it.",
        )
    if (folder / SINGLE).is_file() or (folder / INDEX).is_file():
        return
    pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
    if pickled:
        raise UsageError(
            f"{folder} has only pickled weights ({pickled[0]}), which can run code when they are loaded.",
            "Convert them: load the model with transformers and save_pretrained() it to a new folder.",
        )
    raise UsageError(
        f"{folder} has no weights: neither {SINGLE} nor {INDEX}.", "Download or copy the model again."
    )


def _fetch(model: ModelConfig, weights: Literal["table", "all"], progress: Progress) -> Path:
    code = ["*.py"] if model.trust_remote_code else []
    folder = download(model.name, [*SMALL_FILES, *code], model.revision)
    files = {SINGLE}
    if (folder / INDEX).is_file():
        shards = _read_index(folder)
        files = set(shards.values())
        if weights == "table":
            files = {shards[_find_table(folder, shards, model.trust_remote_code)[0]]}
    if not all((folder / name).is_file() for name in files):
        progress.note(f"Downloading {model.name} from the Hugging Face Hub.")
    folder = download(model.name, sorted(files), model.revision)
    _check_folder(folder)
    return folder


# -- reading a folder --------------------------------------------------------------------------------------


def _read_index(folder: Path) -> dict[str, str]:
    """Parameter name → file name, from the index of a sharded model."""
    try:
        weight_map: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return dict(weight_map)
    except (OSError, ValueError, KeyError, TypeError):
        raise _damaged(folder / INDEX) from None


def _weight_map(folder: Path) -> dict[str, str]:
    """Parameter name → file name, sharded or not."""
    if (folder / INDEX).is_file():
        return _read_index(folder)
    _check_folder(folder)
    with _opened(folder / SINGLE) as file:
        return dict.fromkeys(file.keys(), SINGLE)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, open for reading."""
    if not path.is_file():
        raise UsageError(f"The model is incomplete: {path} is missing.", "Download or copy it again.")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError):
        raise _damaged(path) from None


def _damaged(path: Path) -> UsageError:
    return UsageError(f"{path} is truncated or damaged.", "Download or copy it again.")


def _read_config(folder: Path, trust_remote_code: bool) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unusable(folder / "config.json", error) from None
    return config


def _unusable(path: Path, error: Exception) -> UsageError:
    if "trust_remote_code" in str(error):
        return UsageError(
            f"{path.parent} needs Python code of its own, which is not run by default.",
            "If you trust its author: --trust-remote-code, or --set model.trust_remote_code=true.",
        )
    reason = str(error).strip().split("\n")[0]
    return UsageError(
        f"{path} cannot be used: {reason}", "Pass a causal language model that transformers knows."
    )


def context_length(folder: Path, trust_remote_code: bool = False) -> int:
    """Tokens that the model was made for: prompt and answer together."""
    text = _read_config(folder, trust_remote_code).get_text_config()
    length = getattr(text, "max_position_embeddings", None)
    if not isinstance(length, int):
        raise UsageError(
            f"{folder / 'config.json'} does not say how long a prompt may be.",
            "Add max_position_embeddings (tokens) to it.",
        )
    return length


# -- the embedding table -----------------------------------------------------------------------------------


def _declared_table(folder: Path, trust_remote_code: bool) -> tuple[str, torch.Size]:
    """Name and shape of the input embeddings, from the model's class and without its weights."""
    config = _read_config(folder, trust_remote_code)
    try:
        with torch.device("meta"):
            model = CAUSAL_LM.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError as error:  # transformers knows the type, but not as a causal language model
        raise _unusable(folder / "config.json", error) from None
    table = model.get_input_embeddings().weight
    return next(name for name, parameter in model.named_parameters() if parameter is table), table.shape


def _find_table(folder: Path, names: Collection[str], trust_remote_code: bool) -> tuple[str, torch.Size]:
    """The input embeddings' name among the `names` in the weight files, and the shape they must have.

    Files written by the bare decoder lack the prefix `model.`, those of a larger model have one more; and
    where input and output embeddings are tied, some have only the output's.
    """
    declared, shape = _declared_table(folder, trust_remote_code)
    last = ".".join(declared.split(".")[-2:])
    alike = [name for name in names if name == last or name.endswith(f".{last}")]
    if declared in names:
        return declared, shape
    if len(alike) == 1:
        return alike[0], shape
    if "lm_head.weight" in names and _read_config(folder, trust_remote_code).tie_word_embeddings:
        return "lm_head.weight", shape
    raise UsageError(
        f"The weights in {folder} hold no input embeddings (looked for {declared}).",
        "Check that config.json and the safetensors belong to one model.",
    )


def load_table(folder: Path, trust_remote_code: bool = False) -> Tensor:
    """The input embeddings [V, D] in the type they are stored in; no other weight is read.

    Raises:
        UsageError: the folder is incomplete or damaged, or its parts do not belong together.
    """
    files = _weight_map(folder)
    name, shape = _find_table(folder, files, trust_remote_code)
    with _opened(folder / files[name]) as file:
        table: Tensor = file.get_tensor(name)
    if table.shape != shape or not table.is_floating_point():
        raise UsageError(
            f"{name} in {folder} is {table.dtype} {tuple(table.shape)}; config.json says {tuple(shape)}.",
            "Pass an unquantised model whose config.json and safetensors belong together.",
        )
    return table


def table_sha256(table: Tensor) -> str:
    """A hash of the table's type, shape and values."""
    digest = hashlib.sha256(f"{table.dtype} {tuple(table.shape)}".encode())
    digest.update(table.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_sha256(folder: Path) -> str:
    """A hash of everything that decides what the model answers: configuration, tokenizer, weights."""
    names = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    names |= set(_weight_map(folder).values())
    found = sorted(name for name in names if (folder / name).is_file())
    digests = "".join(f"{name} {_file_sha256(folder / name)}\n" for name in found)
    return hashlib.sha256(digests.encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    target = path.resolve()
    if target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", target.name):
        return target.name  # the Hub's cache names a large file by its hash
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- tokenizer and model -----------------------------------------------------------------------------------


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """The model's tokenizer, with a padding token and padding on the left.

    Raises:
        UsageError: there is none, or none that tells the place of each token in the text.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # the tokenizers library raises plain Exception
        file = folder / "tokenizer.json"
        reason = str(error).strip().split("\n")[0] if file.is_file() else "it is missing"
        raise UsageError(
            f"The tokenizer {file} cannot be used: {reason}.",
            "Copy the tokenizer's files (tokenizer.json, tokenizer_config.json) next to config.json.",
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.eos_token is None:
        raise UsageError(
            f"The tokenizer in {folder} has no tokenizer.json or no end-of-text token; stage1 needs both.",
            "Save it with transformers as a fast tokenizer, its eos_token set.",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` takes the first of cuda, mps, cpu that is there.

    Of several processes, as `accelerate launch` starts them, each gets the GPU of its own local rank.

    Raises:
        UsageError: it is not there.
    """
    there = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if _cuda() else []
    there += ["mps"] if torch.backends.mps.is_available() else []
    there += ["cpu"]
    kind = there[0].split(":")[0]
    if name in ("auto", kind):
        own = f"cuda:{os.environ['LOCAL_RANK']}" if kind == "cuda" and "LOCAL_RANK" in os.environ else kind
        return torch.device(own)
    if name in there:
        return torch.device(name)
    raise UsageError(f"There is no device {name!r} here.", f"Use one of: auto, {', '.join(there)}.")


def _cuda() -> bool:
    return torch.cuda.is_available()


def load_llm(
    folder: Path, *, dtype: str, device: torch.device, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The whole model, frozen, in `dtype` (`auto`: float32 on the CPU, its own elsewhere) on `device`.

    Raises:
        UsageError: unknown `dtype`, or weights that are damaged or belong to another configuration.
        Stage1Error: it does not fit into the device's memory.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise UsageError(f"Unknown dtype {dtype!r}.", suggest(dtype, ["auto", *DTYPES]))
    chosen = DTYPES["float32"] if dtype == "auto" and device.type == "cpu" else DTYPES.get(dtype, "auto")
    _check_folder(folder)
    for name in sorted(set(_weight_map(folder).values())):
        with _opened(folder / name):  # transformers' own errors on a damaged file do not name it
            pass
    try:
        with _quiet_transformers():
            model, loading = CAUSAL_LM.from_pretrained(
                folder,
                dtype=chosen,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
        model.to(device)
    except torch.OutOfMemoryError:
        raise Stage1Error(
            f"The model in {folder} does not fit into the memory of {device}.",
            "Use a smaller --dtype, another --device, or a smaller model.",
        ) from None
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise UsageError(
            f"The weights in {folder} do not have the sizes that its config.json says.",
            "Pass a folder whose config.json and safetensors belong together.",
        ) from None
    except (OSError, ValueError) as error:
        raise _unusable(folder / "config.json", error) from None
    if lacking := sorted(loading["missing_keys"]):
        raise UsageError(
            f"The weights in {folder} lack {len(lacking)} parameters, {lacking[0]} among them.",
            "Check that config.json and the safetensors belong to one model.",
        )
    suggested, plain = model.generation_config, cast(Any, GenerationConfig)
    # Sampling and penalties that the folder suggests are no part of the protocol, and a repetition penalty
    # cannot even see a prompt that arrives as embeddings.
    model.generation_config = plain(bos_token_id=suggested.bos_token_id, eos_token_id=suggested.eos_token_id)
    frozen: PreTrainedModel = model.eval().requires_grad_(False)
    # Both are called on their own: to generate, and by what reads states.
    for part in (frozen, frozen.base_model):
        forbid_cudnn_attention(part)
    return frozen


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bars and no tables of missing weights: the caller shows progress and raises errors itself."""
    log = cast(Any, logging)
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()

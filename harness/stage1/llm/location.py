"""Where a model lies: with a plugin, in a folder or GGUF file of the user's, or on the Hub."""

from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from stage1 import hub
from stage1.config import ModelConfig
from stage1.errors import UsageError
from stage1.files import expanded, whole_path
from stage1.llm.gguf_file import check_gguf
from stage1.llm.table import find_table
from stage1.llm.weights import INDEX, SINGLE, check_folder, is_gguf, read_index, weight_map
from stage1.plugins import load_plugins
from stage1.progress import Progress

SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "additional_chat_templates/*.jinja"]
"""What a model folder holds beside its weights: configuration, tokenizer, chat templates."""


def locate(
    model: ModelConfig, *, weights: Literal["table", "all"], progress: Progress, download: bool = True
) -> Path:
    """The model's folder or GGUF file.

    Args:
        model: its `name` is that of a model plugin, a folder, a GGUF file or a Hub id.
        weights: what a download must bring: the shard that holds the embedding table, or all of them.
        progress: told of a download.
        download: False takes what is on this machine alone.

    Raises:
        UsageError: there is no such model, it is gated or out of reach, or it has no safe weights.
    """
    plugins = load_plugins()
    if (brought := plugins.model(model.name)) is not None:
        return _checked(brought)
    source = expanded(model.name)
    if _is_model(source):
        return _checked(source)
    names = plugins.names("model")
    kinds = "a folder with config.json, tokenizer.json and safetensors, a GGUF file, a Hub id (owner/name)"
    if source.exists() or _looks_like_a_path(model.name):
        there = "is neither a folder nor a .gguf file" if source.exists() else "does not exist"
        moved = " If a run's model was moved, say where it is: --model."
        raise UsageError(
            f"The model {model.name} {there}.", f"Pass {kinds}, or one of: {', '.join(names)}.{moved}"
        )
    if "/" not in model.name and (near := get_close_matches(model.name.lower(), names)):
        raise UsageError(f"Unknown model {model.name!r}: did you mean {near[0]!r}?", f"Or pass {kinds}.")
    return _fetch(model, weights, progress) if download else _cached(model)


def found_anywhere(name: str) -> str:
    """`name` as a whole path, where it is that of a folder or GGUF file of this machine.

    Raises:
        UsageError, PluginError: see `Registry.model`.
    """
    source = expanded(name)
    return str(whole_path(source)) if _is_model(source) and load_plugins().model(name) is None else name


def _is_model(source: Path) -> bool:
    return source.is_dir() or (source.is_file() and is_gguf(source))


def _checked(source: Path) -> Path:
    (check_gguf if is_gguf(source) else check_folder)(source)
    return source


def _looks_like_a_path(name: str) -> bool:
    parent = Path(name).parent
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or name.count("/") > 1
        or is_gguf(Path(name))
        or (parent != Path() and parent.is_dir())
    )


def _cached(model: ModelConfig) -> Path:
    """The whole model in the Hub's cache."""
    folder = hub.cached(model.name, model.revision)
    if folder is None or not all((folder / name).is_file() for name in weight_map(folder).values()):
        raise UsageError(
            f"The model {model.name} is not on this machine.", "Say where it lies: --model FOLDER"
        )
    return folder


def _fetch(model: ModelConfig, weights: Literal["table", "all"], progress: Progress) -> Path:
    code = ["*.py"] if model.trust_remote_code else []
    folder = hub.download(model.name, [*SMALL_FILES, *code], model.revision)
    files = {SINGLE}
    if (folder / INDEX).is_file():
        shards = read_index(folder)
        files = set(shards.values())
        if weights == "table":
            files = {shards[find_table(folder, shards, model.trust_remote_code)]}
    if not all((folder / name).is_file() for name in files):
        progress.note(f"Downloading {model.name} from the Hugging Face Hub.")
    folder = hub.download(model.name, sorted(files), model.revision)
    check_folder(folder)
    return folder

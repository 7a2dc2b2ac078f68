"""The embedding table: the rows that the LLM's first layer receives for each token id, without the rest."""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from stage1.errors import UsageError
from stage1.llm.configuration import read_config, unusable
from stage1.llm.gguf_file import read_gguf_table
from stage1.llm.quiet import quiet_transformers
from stage1.llm.weights import is_gguf, opened, weight_map

CAUSAL_LM: Any = AutoModelForCausalLM  # its methods carry no types
ROWS = 4096  # embedded at a time


def load_table(source: Path, trust_remote_code: bool = False) -> Tensor:
    """What the model's `get_input_embeddings()` returns for each id, [V, D]; no other weight is read.

    For most models that is the stored table, in the type it is stored in (a quantised one in float32). Where
    the layer does more than look up, as Gemma's multiplies by √D, its result is in float32.

    Raises:
        UsageError: the model is incomplete or damaged, its parts do not belong together, or a row is not
            finite.
    """
    declared, layer = _declared(source, trust_remote_code)
    if is_gguf(source):
        name, table = "token_embd.weight", read_gguf_table(source)
    else:
        files = weight_map(source)
        name = _stored(declared, source, files, trust_remote_code)
        with opened(source / files[name]) as file:
            table = file.get_tensor(name)
    shape = tuple(layer.weight.shape)
    if tuple(table.shape) != shape or not table.is_floating_point():
        raise UsageError(
            f"{name} in {source} is {table.dtype} {tuple(table.shape)}; its configuration says {shape}.",
            "Pass an unquantised model whose config.json and safetensors belong together.",
        )
    finite = torch.cat([torch.isfinite(rows).all(1) for rows in torch.split(table, ROWS)])
    if not finite.all():
        wrong = torch.nonzero(~finite)[:, 0].tolist()
        raise UsageError(
            f"{name} in {source} is NaN or infinite in {len(wrong)} rows, that of id {wrong[0]} first.",
            "The weights are damaged: download or convert the model again.",
        )
    return table if type(layer) is nn.Embedding else _embedded(layer, table)


@torch.no_grad()
def _embedded(layer: nn.Embedding, table: Tensor) -> Tensor:
    """[V, D] float32: what `layer` makes of each id when its weights are `table`."""
    layer.weight = nn.Parameter(table.float(), requires_grad=False)
    return torch.cat([layer(ids) for ids in torch.split(torch.arange(len(table)), ROWS)]).float()


def _declared(source: Path, trust_remote_code: bool) -> tuple[str, nn.Embedding]:
    """The input embeddings' name and layer."""
    model: Any = without_weights(source, trust_remote_code)
    layer = model.get_input_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    return f"{names[id(layer)]}.weight", layer


def table_width(source: Path, trust_remote_code: bool = False) -> int:
    """D, the width of the input embeddings, as the configuration says; no weights are read."""
    return _declared(source, trust_remote_code)[1].weight.shape[1]


def without_weights(source: Path, trust_remote_code: bool) -> PreTrainedModel:
    """The model as its class makes it of the configuration.

    Raises:
        UsageError: transformers rejects it.
    """
    config = read_config(source, trust_remote_code)
    try:
        # Its few buffers are real and in full precision: a factor that the layer multiplies by is one.
        with quiet_transformers(), init_empty_weights(include_buffers=False):
            model: PreTrainedModel = CAUSAL_LM.from_config(
                config, dtype=torch.float32, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # a type that is no causal language model, sizes that do not go together, …
        raise unusable(source, error) from None
    return model


def find_table(folder: Path, names: Collection[str], trust_remote_code: bool) -> str:
    """The input embeddings' name among the `names` in the weight files of `folder`.

    Raises:
        UsageError: none of them is.
    """
    return _stored(_declared(folder, trust_remote_code)[0], folder, names, trust_remote_code)


def _stored(declared: str, folder: Path, names: Collection[str], trust_remote_code: bool) -> str:
    """What the weight `declared` is called among `names`.

    Files written by the bare decoder lack the prefix `model.`, those of a larger model have one more; and
    where input and output embeddings are tied, some have only the output's.
    """
    last = ".".join(declared.split(".")[-2:])
    alike = [name for name in names if name == last or name.endswith(f".{last}")]
    if declared in names:
        return declared
    if len(alike) == 1:
        return alike[0]
    if "lm_head.weight" in names and read_config(folder, trust_remote_code).tie_word_embeddings:
        return "lm_head.weight"
    raise UsageError(
        f"The weights in {folder} hold no input embeddings (looked for {declared}).",
        "Check that config.json and the safetensors belong to one model.",
    )


def require_rows(largest: int, rows: int) -> None:
    """Raise UsageError if `largest`, a token id, is beyond a table of so many `rows`."""
    if largest >= rows:
        raise UsageError(
            f"The tokenizer yields id {largest}, but the embedding table has {rows} rows.",
            "Tokenizer and weights belong to different models; use the folder of one model.",
        )


def table_sha256(table: Tensor) -> str:
    """A hash of the table's type, shape and values."""
    digest = hashlib.sha256(f"{table.dtype} {tuple(table.shape)}".encode())
    digest.update(table.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""The whole LLM, frozen, on its device."""

import os
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from stage1.bounded import read_json
from stage1.errors import Stage1Error, UsageError, suggest
from stage1.llm.architecture import align_embeddings, find_decoder
from stage1.llm.configuration import origin, read_config, unusable
from stage1.llm.gguf_file import forget, read_once
from stage1.llm.quiet import quiet_transformers
from stage1.llm.table import CAUSAL_LM, without_weights
from stage1.llm.weights import check_folder, is_gguf, opened, weight_map

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

cuda: Any = torch.backends.cuda  # its functions carry no types


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` takes the first of cuda, mps, cpu that is there.

    Of several processes, as `accelerate launch` starts them, each gets the GPU of its own local rank.

    Raises:
        UsageError: it is not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = [f"cuda:{number}" for number in range(gpus)]
    there += ["mps"] if torch.backends.mps.is_available() else []
    there += ["cpu"]
    kind = there[0].split(":")[0]
    if name in ("auto", kind):
        own = f"cuda:{os.environ['LOCAL_RANK']}" if kind == "cuda" and "LOCAL_RANK" in os.environ else kind
        return torch.device(own)
    if name in there:
        return torch.device(name)
    raise UsageError(f"There is no device {name!r} here.", f"Use one of: auto, {', '.join(there)}.")


def device_name(device: torch.device) -> str:
    """A GPU's own name, or what else the device is."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def load_llm(
    source: Path, *, dtype: str, device: torch.device, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The whole model, frozen, in `dtype` (`auto`: float32 on the CPU, its own elsewhere) on `device`.

    Given embeddings mean what its `get_input_embeddings()` returns (`align_embeddings`), and nothing that the
    folder suggests for generation is taken over but the tokens that begin and end a text.

    Raises:
        UsageError: unknown `dtype`, or weights that are damaged or belong to another configuration.
        Stage1Error: it does not fit into the device's memory.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise UsageError(f"Unknown dtype {dtype!r}.", suggest(dtype, ["auto", *DTYPES]))
    chosen = DTYPES["float32"] if dtype == "auto" and device.type == "cpu" else DTYPES.get(dtype, "auto")
    ends = _generation_settings(source, trust_remote_code)
    if not is_gguf(source):
        _check_weights(source)
    model = _load(source, chosen, device, trust_remote_code, ends)
    model.generation_config = ends  # that of a GGUF file is not the one that was passed
    frozen: PreTrainedModel = model.eval().requires_grad_(False)
    # All are called on their own: to generate, and by what reads states.
    for part in {frozen, frozen.base_model, find_decoder(frozen).module}:
        _forbid_cudnn_attention(part)
    align_embeddings(frozen)
    return frozen


def _forbid_cudnn_attention(model: nn.Module) -> None:
    """Have every forward pass of `model` run without cuDNN's attention, which does not repeat.

    In bfloat16 with a padding mask, one decoding step called twice on the same cache gave logits that differ
    by 0.6 (torch 2.11, H200), and its backward pass returns NaN for left-padded batches. The flash,
    memory-efficient and math backends repeat to the bit and are no slower.

    The setting is PyTorch's own and holds for the whole process: it is changed for the time of a forward pass
    alone (the backward pass belongs to the backend that the forward pass chose), so that a program which uses
    stage1 as a library keeps what it had set.
    """
    before: list[bool] = []

    def enter(*_: Any) -> None:
        before.append(cuda.cudnn_sdp_enabled())
        cuda.enable_cudnn_sdp(False)

    def leave(*_: Any) -> None:
        cuda.enable_cudnn_sdp(before.pop())

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave, always_call=True)


def attention_backends() -> dict[str, bool]:
    """The attention backends that a forward pass of ours may choose from, for the manifest."""
    return {
        "flash": cuda.flash_sdp_enabled(),
        "memory_efficient": cuda.mem_efficient_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
        "cudnn": False,
    }


def check_llm(source: Path, trust_remote_code: bool = False, *, whole: bool = True) -> None:
    """Refuse what `load_llm` would refuse, as far as that can be told without reading the weights.

    Args:
        source: the model.
        trust_remote_code: its folder's Python code may run.
        whole: False if it was downloaded for its table alone, so that other weight files may be missing.

    Raises:
        UsageError: generation settings, weight files that are here, or the architecture cannot be used.
    """
    ends = _generation_settings(source, trust_remote_code)
    if not is_gguf(source):
        _check_weights(source, whole=whole)
    if whole and not is_gguf(source):  # names and sizes stand in front of the weights
        find_decoder(_load(source, torch.float32, torch.device("meta"), trust_remote_code, ends))
    else:
        find_decoder(without_weights(source, trust_remote_code))


def _check_weights(folder: Path, *, whole: bool = True) -> None:
    """Raise UsageError for a damaged file: transformers' own errors do not name it."""
    check_folder(folder)
    for name in sorted(set(weight_map(folder).values())):
        if whole or (folder / name).exists():
            with opened(folder / name):
                pass


def _load(
    source: Path,
    dtype: torch.dtype | str,
    device: torch.device,
    trust_remote_code: bool,
    ends: GenerationConfig,
) -> Any:
    """The model on `device`; on that called `meta`, without its weights, which are only known to be there."""
    folder, options = origin(source, trust_remote_code)
    if not is_gguf(source):
        options["use_safetensors"] = True
    try:
        with quiet_transformers(), read_once():
            model, loading = CAUSAL_LM.from_pretrained(
                folder,
                config=read_config(source, trust_remote_code),
                generation_config=ends,
                dtype=dtype,
                output_loading_info=True,
                **({"device_map": "meta"} if device.type == "meta" else {}),
                **options,
            )
        forget()  # nobody asks for the file again
        if lacking := sorted(loading["missing_keys"]):
            raise UsageError(
                f"The weights in {source} lack {len(lacking)} parameters, {lacking[0]} among them.",
                "Check that config.json and the safetensors belong to one model.",
            )
        return model.to(device)
    except torch.OutOfMemoryError:
        raise Stage1Error(
            f"The model in {source} does not fit into the memory of {device}.",
            "Use a smaller --dtype, another --device, or a smaller model.",
        ) from None
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise UsageError(
            f"The weights in {source} do not have the sizes that its config.json says.",
            "Pass a folder whose config.json and safetensors belong together.",
        ) from None
    except Stage1Error:
        raise
    except (OSError, ValueError, KeyError, ImportError, AssertionError) as error:
        raise unusable(source, error) from None


def _generation_settings(source: Path, trust_remote_code: bool) -> GenerationConfig:
    """The tokens that begin and end a text, as the model's generation settings or its configuration say.

    Sampling and penalties that a folder suggests are no part of the protocol, and a repetition penalty cannot
    even see a prompt that arrives as embeddings.
    """
    text = read_config(source, trust_remote_code).get_text_config()
    said: dict[str, Any] = {name: getattr(text, name, None) for name in ("bos_token_id", "eos_token_id")}
    file = source / "generation_config.json"
    if not is_gguf(source) and file.is_file():
        try:
            tree = read_json(file.read_bytes())
        except (OSError, ValueError):
            tree = None
        if not isinstance(tree, dict):
            raise UsageError(f"{file} holds no JSON object.", "Correct it, or remove it: it is optional.")
        said = {name: tree.get(name) for name in said}
        for name, value in said.items():
            ids = value if isinstance(value, list) else [value]
            if value is not None and not all(isinstance(id_, int) for id_ in ids):
                raise UsageError(
                    f"{file}: {name}: {value!r} is neither a token id nor a list of them.",
                    "Correct it, or remove the file: it is optional.",
                )
    return cast(Any, GenerationConfig)(**said)  # type: ignore[no-any-return]

"""How large a bottleneck's parts are."""

from typing import Any

from torch import nn

from stage1.bottleneck.bottleneck import Bottleneck


def size(bottleneck: Bottleneck) -> dict[str, Any]:
    """Width of embeddings and code, their ratio, and what of each part has to lie on a disk.

    `parameters` are all numbers that are saved, those of a closed form too; `bytes` what they take.
    """
    width, code = bottleneck.compressor.embed_dim, bottleneck.stages[-1].code_dim
    return {
        "embed_dim": width,
        "code_dim": code,
        "ratio": width / code,
        "compressor": _part(bottleneck.compressor),
        "adapter": _part(bottleneck.adapter),
    }


def _part(part: nn.Module) -> dict[str, int]:
    saved = part.state_dict().values()
    return {
        "parameters": sum(tensor.numel() for tensor in saved),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in saved),
    }

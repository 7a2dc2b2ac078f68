"""Which of PyTorch's attention backends the frozen LLM may use.

cuDNN's does not repeat: in bfloat16 with a padding mask, one decoding step called twice on the same cache
gave logits that differ by 0.6 (torch 2.11, H200), and its backward pass returns NaN for left-padded batches.
The flash, memory-efficient and math backends repeat to the bit and are no slower, so cuDNN's is left out.
"""

from typing import Any

import torch
from torch import nn

cuda: Any = torch.backends.cuda  # its functions carry no types


def forbid_cudnn_attention(model: nn.Module) -> None:
    """Have every forward pass of `model` run without cuDNN's attention.

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


def backends() -> dict[str, bool]:
    """The attention backends that a forward pass of ours may choose from, for the manifest."""
    return {
        "flash": cuda.flash_sdp_enabled(),
        "memory_efficient": cuda.mem_efficient_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
        "cudnn": False,
    }

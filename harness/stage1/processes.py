"""Several processes at one run, as `accelerate launch` starts them: who is first, what they tell each other.

They need the run's folder on storage that all of them see.
"""

import os
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # the command line asks `is_first` before it loads torch
    import torch
    from accelerate import PartialState

T = TypeVar("T")


def several() -> bool:
    """Whether this is one of several processes."""
    return "LOCAL_RANK" in os.environ


def is_first() -> bool:
    """Whether this process speaks and writes for all."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def share(items: list[T], device: "torch.device") -> list[T]:
    """Every n-th of `items`, where n processes work: this one's part."""
    if not several():
        return items
    state = _state(device)
    return items[state.process_index :: state.num_processes]


def from_first(value: T, device: "torch.device") -> T:
    """What the first process has for `value`, in all of them."""
    if not several():
        return value
    from accelerate.utils import broadcast_object_list

    _state(device)
    told = [value]
    broadcast_object_list(told)
    return told[0]


def from_all(value: T, device: "torch.device") -> list[T]:
    """What each process has for `value`, in all of them."""
    if not several():
        return [value]
    from accelerate.utils import gather_object

    _state(device)
    gathered: list[T] = gather_object([value])
    return gathered


def _state(device: "torch.device") -> "PartialState":
    from accelerate import PartialState

    return PartialState(cpu=device.type == "cpu")

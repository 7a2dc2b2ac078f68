"""stage1: how much can the input embeddings of a frozen Llama be squeezed before it stops answering?

Importing this package loads neither torch nor any plugin; the names below are resolved on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pluggy import HookimplMarker

if TYPE_CHECKING:
    from stage1.bottleneck import Bottleneck as Bottleneck
    from stage1.interfaces import Adapter as Adapter
    from stage1.interfaces import ComponentConfig as ComponentConfig
    from stage1.interfaces import Compressor as Compressor
    from stage1.interfaces import Loss as Loss
    from stage1.interfaces import SizeConfig as SizeConfig
    from stage1.tensors import Code as Code
    from stage1.tensors import LossInputs as LossInputs
    from stage1.tensors import TokenStats as TokenStats

__version__ = "0.1.0"

hookimpl = HookimplMarker("stage1")
"""Marks a plugin's function as the implementation of the hook of the same name."""

_HOME = {
    "Adapter": "interfaces",
    "Bottleneck": "bottleneck",
    "Code": "tensors",
    "ComponentConfig": "interfaces",
    "Compressor": "interfaces",
    "Loss": "interfaces",
    "LossInputs": "tensors",
    "SizeConfig": "interfaces",
    "TokenStats": "tensors",
}

__all__ = [  # noqa: RUF022 - the order in which a plugin author meets them
    "hookimpl",
    "Compressor",
    "Adapter",
    "Loss",
    "ComponentConfig",
    "SizeConfig",
    "Code",
    "LossInputs",
    "TokenStats",
    "Bottleneck",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"stage1.{_HOME[name]}"), name)
    raise AttributeError(f"module 'stage1' has no attribute {name!r}")

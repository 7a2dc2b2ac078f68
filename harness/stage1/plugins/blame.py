"""Whose plugin went wrong while it worked: said in a line, with its package."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from stage1.errors import PluginError, Stage1Error
from stage1.plugins.discovery import load_plugins
from stage1.plugins.faults import raised
from stage1.plugins.interfaces import Component, Compressor
from stage1.plugins.registry import Registry
from stage1.plugins.resolution import ResolvedComponent, ResolvedLoss
from stage1.plugins.tensors import Code

T = TypeVar("T")


@contextmanager
def attributed(remedy: str = "", cls: type[Component] | None = None) -> Iterator[None]:
    """Turn what a component raises, `sys.exit()` included, into an error that names it and its package.

    Args:
        remedy: of that error.
        cls: the class that is at work, where it may have left no trace on the stack.

    Raises:
        PluginError: a foreign plugin raised. Ctrl-C, our own errors and all else stay as they are.
    """
    try:
        yield
    except (Stage1Error, KeyboardInterrupt):
        raise
    except BaseException as error:
        registry = load_plugins()
        blamed = _blame(error, registry)
        if not blamed and cls and registry.owner(cls).distribution != "stage1":
            blamed = _said(error, cls, registry)
        if not blamed:
            raise
        raise PluginError(blamed, remedy) from error


def _blame(error: BaseException, registry: Registry) -> str | None:
    """Whose plugin raised `error`, and where; None where it was none, or one of our own."""
    modules = {record.cls.__module__: record.cls for record in registry.components if record.cls}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        component = frame.f_locals.get("self")
        own = type(component) if isinstance(component, Component) else None
        if cls := own or modules.get(frame.f_globals.get("__name__", "")):
            if registry.owner(cls).distribution == "stage1":
                continue  # a chain, for one, only hands on what its compressors raise
            last = traceback.extract_tb(error.__traceback__)[-1]
            return _said(error, cls, registry, f" ({Path(last.filename).name}, line {last.lineno})")
    # Python raises another error in place of a StopIteration that leaves a generator.
    return _blame(error.__cause__, registry) if error.__cause__ else None


def _said(error: BaseException, cls: type[Component], registry: Registry, where: str = "") -> str:
    return f"The plugin {cls.name!r} of {registry.owner(cls)} raised {raised(error)}{where}."


def built(component: ResolvedComponent | ResolvedLoss, *widths: int) -> Any:
    """What the class of a component makes of its options and the widths.

    Raises:
        PluginError: a foreign one raised, or its `__init__` returned something.
        ConfigError: an option does not fit the width.
    """
    with attributed(cls=component.cls):
        return component.cls(component.config, *widths)


def expect(component: Component, method: str, returned: T, kind: type, what: str, sound: bool = True) -> T:
    """What a component's `method` `returned`, which must be of a `kind` and `sound`.

    Raises:
        PluginError: it is something else than `what` says in words.
    """
    if isinstance(returned, kind) and sound:
        return returned
    shape = f" of shape {tuple(returned.shape)}" if isinstance(returned, Tensor) else ""
    raise PluginError(
        f"The plugin {component.name!r} of {load_plugins().owner(type(component))} returned a "
        f"{type(returned).__name__}{shape} from {method}, not {what}.",
        f"Its author can find out with: stage1 plugins check {component.name}",
    )


def expect_code(compressor: Compressor, code: Code) -> Code:
    """The `code` that a compressor's `forward` returned, if it is one."""
    return expect(compressor, "forward", code, Code, "a Code")


def expect_vectors(
    component: Component, method: str, reconstructed: Tensor, mask: Tensor, width: int
) -> Tensor:
    """The `reconstructed` vectors [B, M, D] that a component returned, if they are those of `mask` [B, M]."""
    sound = getattr(reconstructed, "shape", None) == (*mask.shape, width)
    return expect(component, method, reconstructed, Tensor, f"a tensor [B, M, {width}]", sound)

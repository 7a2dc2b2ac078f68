"""Finding plugins. Whatever a plugin does wrong is caught, attributed to its package and recorded, and the
others load. Pluggy's own entry-point loader stops at the first plugin that fails, drops all but one of the
entry points that share a name, and ignores a misspelt hook.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import EntryPoint, distributions
from inspect import cleandoc
from typing import Any

from pluggy import HookCaller, HookImpl, PluginManager
from pydantic import BaseModel

from stage1 import hookspecs
from stage1.errors import suggest
from stage1.interfaces import Adapter, Component, Compressor, Loss
from stage1.plugins.faults import FaultError, guarded, logger
from stage1.plugins.registry import Kind, Owner, PluginRecord, Registry, canonical

GROUP = "stage1"
"""The entry points' group."""

FAMILIES: dict[str, tuple[Kind, type[Component], str]] = {
    # hook: kind, base class, the configuration's own key beside the plugin's options
    "stage1_compressors": ("compressor", Compressor, "name"),
    "stage1_adapters": ("adapter", Adapter, "name"),
    "stage1_losses": ("loss", Loss, "weight"),
}


@cache
def load_plugins() -> Registry:
    """The plugins installed in this environment, looked up once per process."""
    return discover(_installed())


def discover(entry_points: Iterable[EntryPoint]) -> Registry:
    """Load the given entry points, stage1's own first, then by distribution and name."""
    manager = PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    origins = sorted(((_origin(point), point) for point in entry_points), key=_precedence)
    return Registry([record for owner, point in origins for record in _load(manager, owner, point)], manager)


def _installed() -> Iterator[EntryPoint]:
    """What `importlib.metadata.entry_points` finds, which a single unreadable distribution would stop."""
    seen = set()
    for distribution in distributions():
        try:
            name, points = canonical(distribution.name), distribution.entry_points
        except Exception:  # no name, or an entry_points.txt that is none
            logger.debug("unreadable metadata: %s", distribution, exc_info=True)
            continue
        if name not in seen:  # the first on the path is the one that is imported
            seen.add(name)
            yield from points.select(group=GROUP)


def _origin(point: EntryPoint) -> Owner:
    return Owner(point.dist.name, point.dist.version) if point.dist else Owner("unknown", "")


def _precedence(origin: tuple[Owner, EntryPoint]) -> tuple[bool, str, str]:
    name = canonical(origin[0].distribution)
    return name != "stage1", name, origin[1].name


def _load(manager: PluginManager, owner: Owner, point: EntryPoint) -> Iterator[PluginRecord]:
    """Import and register what an entry point names, and ask it for its components."""
    record = PluginRecord(point.name, "plugin", *owner, summary="", status="ok", reason="")
    try:
        plugin = guarded("the import failed", point.load)
        hooks = guarded("it cannot be registered", _register, manager, plugin, record.qualified)
        record = record._replace(summary=guarded("it cannot be inspected", _first_line, plugin))
    except FaultError as fault:
        yield record._replace(status="failed", reason=str(fault))
        return
    for hook in hooks:
        if hook.name in FAMILIES:
            for implementation in _implementations(hook, record.qualified):
                yield from _components(hook.name, implementation, record)
    if any(hook.name not in FAMILIES for hook in hooks):
        yield record._replace(kind="events")


def _register(manager: PluginManager, plugin: Any, identifier: str) -> list[HookCaller]:
    """Register a plugin; returns the hooks it implements.

    Raises:
        FaultError: it implements none, an unknown one, or one with arguments that the hook does not have.
    """
    if manager.has_plugin(identifier):
        raise FaultError("its package has another entry point of the same name")
    if other := manager.get_name(plugin):
        raise FaultError(f"{other} has registered the same object")
    try:
        manager.register(plugin, identifier)
        hooks = manager.get_hookcallers(plugin) or []
        if not hooks:
            raise FaultError("it marks no function with @stage1.hookimpl")
        for hook in hooks:
            _check_hook(hook, _implementations(hook, identifier))
    except BaseException:
        if manager.has_plugin(identifier):
            manager.unregister(name=identifier)
        raise
    return hooks


def _implementations(hook: HookCaller, identifier: str) -> list[HookImpl]:
    return [found for found in hook.get_hookimpls() if found.plugin_name == identifier]


def _check_hook(hook: HookCaller, implementations: list[HookImpl]) -> None:
    if not hook.has_spec() and not all(found.optionalhook for found in implementations):
        near = suggest(hook.name, [name for name in vars(hookspecs) if name.startswith("stage1_")])
        raise FaultError(f"it implements {hook.name!r}, which is no hook; {near.rstrip('.')}")
    if any(found.wrapper or found.hookwrapper for found in implementations):
        raise FaultError(f"its {hook.name!r} is a wrapper, but implementations are called one by one")


def _components(hook: str, implementation: HookImpl, plugin: PluginRecord) -> Iterator[PluginRecord]:
    """A record for each class that a plugin's implementation of a component hook returns."""
    kind, base, reserved = FAMILIES[hook]
    record = plugin._replace(kind=kind)
    try:
        returned = guarded(f"{hook} raised", implementation.function)
        classes: list[Any] = list(returned) if isinstance(returned, list | tuple) else [returned]
        if not classes:
            raise FaultError(f"{hook} returned an empty list")
    except FaultError as fault:
        yield record._replace(status="failed", reason=str(fault))
        return
    for cls in classes:
        one = record
        try:
            name, summary = guarded("its class cannot be inspected", _describe, cls, base)
            one = record._replace(name=name, summary=summary)
            guarded("its class cannot be inspected", _check_component, cls, base, reserved)
            yield one._replace(cls=cls)
        except FaultError as fault:
            yield one._replace(status="failed", reason=str(fault))


def _describe(cls: Any, base: type[Component]) -> tuple[str, str]:
    """A component's name and summary."""
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise FaultError(f"it returned {cls!r}, which is no subclass of stage1.{base.__name__}")
    name = getattr(cls, "name", None)
    if not (isinstance(name, str) and re.fullmatch(r"[\w-]+", name)):
        raise FaultError(f"{cls.__name__}.name is {name!r}, not a text of letters, digits, - and _")
    return name, _first_line(cls)


def _check_component(cls: type[Component], base: type[Component], reserved: str) -> None:
    """Refuse a class that would fail in the middle of a run or take options without checking them."""
    if cls.forward is base.forward:
        raise FaultError(f"{cls.__name__} does not define forward")
    if issubclass(cls, Compressor) and cls.changes_length and cls.tokenwise:
        raise FaultError(f"{cls.__name__} changes the length, which needs tokenwise = False")
    if not (isinstance(cls.Config, type) and issubclass(cls.Config, BaseModel)):
        raise FaultError(f"{cls.__name__}.Config is no pydantic model")
    if cls.Config.model_config.get("extra") != "forbid":
        raise FaultError(f"{cls.__name__}.Config lets unknown options pass; derive it from ComponentConfig")
    schema = guarded(f"{cls.__name__}.Config has no JSON schema", cls.Config.model_json_schema)
    if reserved in schema.get("properties", {}):
        raise FaultError(f"{cls.__name__}.Config has an option {reserved!r}, a name that stage1 uses itself")


def _first_line(described: Any) -> str:
    text = getattr(described, "__doc__", None)
    return cleandoc(text).partition("\n")[0] if isinstance(text, str) else ""

"""Finding plugins. Whatever a plugin does wrong is caught, attributed to its package and recorded, and the
others load. Pluggy's own entry-point loader stops at the first plugin that fails, drops all but one of the
entry points that share a name, and ignores a misspelt hook.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from importlib.metadata import EntryPoint, distributions
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, get_args

import typer
from pluggy import HookCaller, HookImpl, PluginManager
from pydantic import BaseModel

from stage1.errors import suggest
from stage1.plugins import hooks as specifications
from stage1.plugins.executors import Executor
from stage1.plugins.faults import FaultError, call, first_line, guarded, logger
from stage1.plugins.interfaces import Adapter, Component, Compressor, Dataset, Loss, Model, Split
from stage1.plugins.registry import HOOKS, AnyKind, Owner, PluginRecord, Registry, canonical
from stage1.plugins.schema import docs
from stage1.plugins.trackers import Tracker

GROUP = "stage1"
"""The entry points' group."""
NAME = r"[\w-]{1,64}"
"""What a component or command may be called: `distribution:name` and `losses.name.option` stay readable."""


@cache
def load_plugins() -> Registry:
    """The plugins installed in this environment, looked up once per process."""
    return discover(_installed())


def discover(entry_points: Iterable[EntryPoint]) -> Registry:
    """Load the given entry points, stage1's own first, then by distribution and name."""
    manager = PluginManager(GROUP)
    manager.add_hookspecs(specifications)
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
    return Owner(point.dist.name, point.dist.version or "") if point.dist else Owner("unknown", "")


def _precedence(origin: tuple[Owner, EntryPoint]) -> tuple[bool, str, str]:
    name = canonical(origin[0].distribution)
    return name != "stage1", name, origin[1].name


def _load(manager: PluginManager, owner: Owner, point: EntryPoint) -> Iterator[PluginRecord]:
    """Import and register what an entry point names, and ask it for what it provides."""
    identifier = f"{canonical(owner.distribution)}:{point.name}"
    record = PluginRecord(point.name, "plugin", *owner, summary="", status="ok", reason="", plugin=identifier)
    try:
        if owner.misnamed:
            raise FaultError("its metadata give no valid name and version of a package; install it again")
        plugin = guarded("the import failed", point.load)
        summary = guarded("it cannot be inspected", lambda: first_line(plugin.__doc__))
        hooks = guarded("it cannot be registered", _register, manager, plugin, identifier)
    except FaultError as fault:
        yield record.failed(fault)
        return
    record = record._replace(summary=summary)
    for hook in sorted(hooks, key=lambda hook: (*HOOKS, hook.name).index(hook.name)):
        if hook.name in PROVIDERS:
            for implementation in _implementations(hook, identifier):
                yield from _provided(hook.name, implementation, record)
    if any(hook.name not in PROVIDERS for hook in hooks):
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
        near = suggest(hook.name, HOOKS)
        raise FaultError(f"it implements {hook.name!r}, which is not a hook. {near.rstrip('.')}")
    if any(found.wrapper or found.hookwrapper for found in implementations):
        raise FaultError(f"its {hook.name!r} is a wrapper, but implementations are called one by one")
    if hook.has_spec():
        for found in implementations:
            _check_arguments(hook, found)


def _check_arguments(hook: HookCaller, implementation: HookImpl) -> None:
    """Refuse what pluggy lets pass and then never fills, or cannot call."""
    taken = hook.spec.argnames if hook.spec else ()
    for given in signature(implementation.function).parameters.values():
        plain = given.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        if not plain or given.name not in taken or given.default is not Parameter.empty:
            offer = f"any of {', '.join(taken)}, each without * or a default" if taken else "no arguments"
            raise FaultError(f"its {hook.name!r} takes {str(given)!r}; it may take {offer}")


def _provided(hook: str, implementation: HookImpl, plugin: PluginRecord) -> Iterator[PluginRecord]:
    """A record for each thing that an implementation of a hook provides, or one that says why it has none."""
    kind, check = PROVIDERS[hook]
    ask = _added if hook == "stage1_commands" else _returned
    record = plugin._replace(kind=kind)
    try:
        for thing in guarded(f"{hook} raised", ask, hook, implementation):
            try:
                yield guarded("it cannot be inspected", check, record, thing)
            except FaultError as fault:
                yield record.failed(fault)
    except FaultError as fault:
        yield record.failed(fault)


def _returned(hook: str, implementation: HookImpl) -> list[Any]:
    """What a hook that returns one thing or a list of them returned."""
    returned = call(hook, implementation)
    things = list(returned) if isinstance(returned, list | tuple) else [returned]
    if not things:
        raise FaultError(f"{hook} returned an empty list")
    return things


def _added(hook: str, implementation: HookImpl) -> list[tuple[str, Any]]:
    """Names and commands that a hook added to an application of its own."""
    app = typer.Typer()
    call(hook, implementation, app=app)
    if app.registered_callback:
        raise FaultError(
            f"{hook} set a callback on stage1's own application; give one to a group of commands"
        )
    if not (commands := guarded("its commands cannot be built", typer.main.get_group, app).commands):
        raise FaultError(f"{hook} added no command")
    return list(commands.items())


def _class(
    base: type[Any], check: Callable[[Any], None] | None = None
) -> Callable[[PluginRecord, Any], PluginRecord]:
    """What makes the record of a family's class, under the name and with the summary that it gives itself."""

    def described(record: PluginRecord, cls: Any) -> PluginRecord:
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise FaultError(f"it returned {cls!r}, which is not a subclass of stage1.{base.__name__}")
        name = getattr(cls, "name", None)
        if not (isinstance(name, str) and re.fullmatch(NAME, name)):
            raise FaultError(f"{cls.__name__}.name is {name!r}, not letters, digits, - and _")
        named = record._replace(name=name, summary=first_line(cls.__doc__))
        try:  # what is known of a class that cannot be used helps those who ask for it by name
            if missing := sorted(getattr(cls, "__abstractmethods__", ())):
                raise FaultError(f"{cls.__name__} does not define {', '.join(missing)}")
            if check is not None:
                guarded("its class cannot be inspected", check, cls)
        except FaultError as fault:
            return named.failed(fault)
        return named._replace(cls=cls) if issubclass(cls, Component) else named._replace(other=cls)

    return described


def _check_dataset(cls: type[Dataset]) -> None:
    splits = cls.splits
    if not isinstance(splits, tuple) or "test" not in splits or not set(splits) <= set(get_args(Split)):
        raise FaultError(f"{cls.__name__}.splits is {splits!r}, not 'test' and any of 'train', 'selection'")


def _check_folder(record: PluginRecord, folder: Any) -> PluginRecord:
    if not (isinstance(folder, Path) and folder.is_absolute() and folder.is_dir()):
        raise FaultError(f"it returned {folder!r}, which is not an absolute path of an existing folder")
    if not any(folder.rglob("*.yaml")):
        raise FaultError(f"{str(folder)!r} holds no .yaml file")
    return record._replace(folder=folder)


def _check_command(record: PluginRecord, added: tuple[str, Any]) -> PluginRecord:
    name, command = added
    if not re.fullmatch(NAME, name):
        raise FaultError(f"its command {name!r} is not made of letters, digits, - and _")
    return record._replace(name=name, summary=first_line(command.help), command=command)


def _check_component(cls: type[Component], reserved: tuple[str, ...]) -> None:
    """Refuse a class that would fail in the middle of a run or take options without checking them.

    `reserved` are the configuration's own keys beside the options.
    """
    if issubclass(cls, Compressor) and cls.changes_length and cls.tokenwise:
        raise FaultError(f"{cls.__name__} changes the length, which needs tokenwise = False")
    _check_options(cls)
    for option in guarded(f"{cls.__name__}.Config has no JSON schema", docs, cls.Config):
        if option.name in reserved:
            raise FaultError(
                f"{cls.__name__}.Config has an option {option.name!r}, a name that stage1 uses itself"
            )


def _check_options(cls: type[Component] | type[Executor]) -> None:
    if not (isinstance(cls.Config, type) and issubclass(cls.Config, BaseModel)):
        raise FaultError(f"{cls.__name__}.Config is not a pydantic model")
    if cls.Config.model_config.get("extra") != "forbid":
        raise FaultError(f"{cls.__name__}.Config lets unknown options pass; derive it from ComponentConfig")


_check_chosen = partial(_check_component, reserved=("name",))
_check_loss = partial(_check_component, reserved=("weight", "ramp"))
PROVIDERS: dict[str, tuple[AnyKind, Callable[[PluginRecord, Any], PluginRecord]]] = {
    "stage1_compressors": ("compressor", _class(Compressor, _check_chosen)),
    "stage1_adapters": ("adapter", _class(Adapter, _check_chosen)),
    "stage1_losses": ("loss", _class(Loss, _check_loss)),
    "stage1_datasets": ("dataset", _class(Dataset, _check_dataset)),
    "stage1_models": ("model", _class(Model)),
    "stage1_trackers": ("tracker", _class(Tracker)),
    "stage1_executors": ("executor", _class(Executor, _check_options)),
    "stage1_tasks": ("tasks", _check_folder),
    "stage1_commands": ("command", _check_command),
}
"""Hooks by which a plugin provides something: of what kind, and how each thing is checked."""

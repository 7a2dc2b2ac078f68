"""The plugins that were found: names to classes, classes to packages, events to whoever listens."""

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

from pluggy import HookCaller, HookImpl, PluginManager

from stage1.errors import PluginError, UsageError, suggest
from stage1.plugins import hooks as specifications
from stage1.plugins.executors import Executor
from stage1.plugins.faults import FaultError, call, first_line, guarded, logger
from stage1.plugins.interfaces import Adapter, Component, Compressor, Dataset, Loss
from stage1.plugins.trackers import Tracker, Tracking

Kind = Literal["compressor", "adapter", "loss"]

AnyKind = Literal[Kind, "dataset", "model", "tracker", "executor", "tasks", "command", "events", "plugin"]
"""What a plugin can be; "plugin": it failed before it told."""

NAMED = ("compressor", "adapter", "loss", "dataset", "model", "tracker", "executor", "command")
"""Kinds that a user asks for by name."""

COMMANDS = (
    *("train", "eval", "sweep", "diagnose", "score", "push"),
    *("tasks", "lm-eval", "plugins", "config", "recipes", "protocols"),
    *("compare", "runs", "show", "verify", "report", "frontier"),
)
"""stage1's own commands, which keep their meaning whatever a plugin adds."""

HOOKS = tuple(name for name in vars(specifications) if name.startswith("stage1_"))
"""Every hook, in the order of their page."""


def source_sha256(cls: type) -> str:
    """The hash of the file that defines a component; empty where there is none, as at a prompt."""
    try:
        return hashlib.sha256(inspect.getsource(sys.modules[cls.__module__]).encode()).hexdigest()
    except (KeyError, OSError, TypeError):
        return ""


DISTRIBUTION = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
VERSION = r"^[A-Za-z0-9.!+_-]*$"
LONGEST = 100
"""What a package and its version may be called: they go into checkpoints, and from there into commands."""


class Owner(NamedTuple):
    """The installed package (distribution) that something comes from."""

    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".strip()

    @property
    def misnamed(self) -> bool:
        """Whether its name or version is none that a package may have, as damaged metadata give it."""
        whole = ((DISTRIBUTION, self.distribution), (VERSION, self.version))
        return not all(re.fullmatch(form, said) and len(said) <= LONGEST for form, said in whole)


class PluginRecord(NamedTuple):
    """One component, task folder, command, listener or failure, as `stage1 plugins list` shows it."""

    name: str  # what the user types; the entry point's name for task folders, listeners and failures
    kind: AnyKind
    distribution: str
    version: str
    summary: str  # first line of the docstring
    status: Literal["ok", "failed"]
    reason: str  # one line: why it failed, or why its name differs from the one it asked for
    plugin: str  # `distribution:entry-point`
    cls: type[Component] | None = None  # of a component that is ok
    other: type[Any] | None = None  # of a data set, model, tracker or executor that is ok
    folder: Path | None = None  # of task files that are ok
    command: Any = None  # typer's, of a command that is ok

    @property
    def owner(self) -> Owner:
        """The package it comes from."""
        return Owner(self.distribution, self.version)

    @property
    def qualified(self) -> str:
        """`distribution:name`, which no other package can take."""
        return f"{canonical(self.distribution)}:{self.name.rpartition(':')[2]}"

    def failed(self, reason: object) -> "PluginRecord":
        """The record of the same thing when it cannot be used."""
        unusable = self._replace(cls=None, other=None, folder=None, command=None)
        return unusable._replace(status="failed", reason=str(reason))

    def as_dict(self) -> dict[str, str]:
        """The record for JSON."""
        shown = ("name", "kind", "distribution", "version", "summary", "status", "reason")
        return {key: value for key, value in self._asdict().items() if key in shown}


class Hook(NamedTuple):
    """A hook and the plugins that implement it, as `stage1 plugins list --hooks` shows it."""

    name: str
    summary: str  # first line of its documentation
    implementers: list[tuple[str, Owner]]  # entry point's name and package, in the order they are called


def canonical(distribution: str) -> str:
    """A distribution's name as packaging tools compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


class Registry:
    """Every plugin that is installed, the faulty ones with the reason.

    Attributes:
        components: one record for each thing that a plugin provides or failed to, in order of precedence.
    """

    def __init__(self, records: Iterable[PluginRecord], manager: PluginManager) -> None:
        self._manager = manager
        self._named: dict[tuple[str, str], PluginRecord] = {}
        self._reported: set[tuple[str, str, str]] = set()
        self._tracking = Tracking()
        self.components = [self._enter(record) for record in records]

    def _enter(self, record: PluginRecord) -> PluginRecord:
        """Give a component or command its names; the first to ask for one keeps it."""
        if record.kind not in NAMED or record.status == "failed":
            return record
        kind, name, qualified = record.kind, record.name, record.qualified
        if (kind, qualified) in self._named:
            return record.failed(
                f"the package has two {kind} plugins named {name!r}; only the first can be used"
            )
        first = self._named.get((kind, name))
        holder = first.owner if first else "stage1" if kind == "command" and name in COMMANDS else None
        if holder:
            reason = f"{name!r} means the {kind} of {holder}; this one is used as {qualified!r}"
            record = record._replace(name=qualified, reason=reason)
        self._named[kind, record.name] = self._named[kind, qualified] = record
        return record

    def names(self, kind: str, suits: Callable[[Any], bool] = lambda cls: True) -> list[str]:
        """What a user can type for a component of `kind` whose class suits, or for a plugin's command."""
        return [r.name for r in self.components if r.kind == kind and r.status == "ok" and suits(r.cls)]

    def task_folders(self) -> list[tuple[Owner, Path]]:
        """The folders of lm-eval task files and whose they are, stage1's own first."""
        return [(r.owner, r.folder) for r in self.components if r.folder]

    def hooks(self) -> list[Hook]:
        """Every hook and who implements it."""
        owners = {record.plugin: record.owner for record in self.components}
        hooks = []
        for name in HOOKS:
            plugins = [found.plugin_name for found in _in_order(getattr(self._manager.hook, name))]
            implementers = [(plugin.partition(":")[2], owners[plugin]) for plugin in plugins]
            hooks.append(Hook(name, first_line(vars(specifications)[name].__doc__), implementers))
        return hooks

    @overload
    def get(self, kind: Literal["compressor"], name: str) -> type[Compressor]: ...
    @overload
    def get(self, kind: Literal["adapter"], name: str) -> type[Adapter]: ...
    @overload
    def get(self, kind: Literal["loss"], name: str) -> type[Loss]: ...
    @overload
    def get(self, kind: Kind, name: str) -> type[Component]: ...
    @overload
    def get(self, kind: Literal["dataset"], name: str) -> type[Dataset]: ...
    @overload
    def get(self, kind: Literal["tracker"], name: str) -> type[Tracker]: ...
    @overload
    def get(self, kind: Literal["executor"], name: str) -> type[Executor]: ...
    def get(self, kind: str, name: str) -> type[Any]:
        """The class that `name`, or `distribution:name`, stands for.

        Raises:
            UsageError: there is none; with the nearest name and the choices or, if its plugin failed to
                load, with whose it is and why.
        """
        record = self._found(kind, name)
        if record is None or (cls := record.cls or record.other) is None:
            raise self._unknown(kind, name)
        return cls

    def model(self, name: str) -> Path | None:
        """Where the model lies that `name`, or `distribution:name`, stands for; None if no plugin brings it.

        Raises:
            UsageError: its plugin failed to load, or the model is not installed.
            PluginError: its plugin raised, or named what is not there.
        """
        record = self._found("model", name)
        if record is None or record.other is None:
            if self._broken("model", name):
                raise self._unknown("model", name)
            return None
        try:
            path = guarded("its path raised", record.other().path)
        except FaultError as fault:
            if isinstance(fault.__cause__, UsageError):
                raise fault.__cause__ from None
            raise PluginError(f"The model {name!r} of {record.owner} cannot be found: {fault}.") from fault
        if not (isinstance(path, Path) and path.is_absolute() and path.exists()):
            raise PluginError(
                f"The model {name!r} of {record.owner} cannot be found: its path is {path!r}, which is not "
                "an absolute path of a folder or file."
            )
        return path

    def command(self, name: str) -> PluginRecord:
        """The plugins' command that `name`, or `distribution:name`, stands for.

        Raises:
            UsageError: there is none; as for `get`.
        """
        record = self._found("command", name)
        if record is None:
            raise self._unknown("command", name, COMMANDS)
        return record

    def _found(self, kind: str, name: str) -> PluginRecord | None:
        return self._named.get((kind, _normal(name)))

    def _unknown(self, kind: str, name: str, own: Sequence[str] = ()) -> UsageError:
        choices = [*own, *self.names(kind)]
        for record in self._broken(kind, name):
            return UsageError(
                f"The {kind} {name!r} of {record.owner} failed to load: {record.reason}.",
                f"Repair or uninstall {record.distribution}, or use another one: "
                f"{', '.join(choices) or '(none)'}.",
            )
        remedy = suggest(name, choices)
        for other in NAMED:
            if other != kind and self._found(other, name):
                remedy = f"{name!r} is the name of a plugin of another kind: {other}. {remedy}"
        if broken := self._broken(kind):
            remedy += f" Plugins that failed to load: {len(broken)}; see `stage1 plugins list`."
        return UsageError(f"Unknown {kind} {name!r}.", remedy)

    def _broken(self, kind: str, name: str | None = None) -> list[PluginRecord]:
        """The plugins that failed and are, or could be, of `kind`; with a `name`, those called so."""
        failed = [r for r in self.components if r.status == "failed" and r.kind in (kind, "plugin")]
        return [r for r in failed if name is None or _normal(name) in (r.name, r.qualified)]

    def qualified(self, kind: str, name: str, distribution: str) -> str | None:
        """`distribution:name` if that package is installed and provides such a component."""
        qualified = f"{canonical(distribution)}:{name}"
        return qualified if (kind, qualified) in self._named else None

    def owner(self, cls: type) -> Owner:
        """The package that a component comes from; for a class no plugin registered, its own module."""
        found = [record.owner for record in self.components if cls in (record.cls, record.other)]
        return found[0] if found else Owner(cls.__module__.partition(".")[0], "")

    def emit(self, event: str, **facts: Any) -> None:
        """Tell every listener of `event` and the run's trackers, one by one.

        One that raises stops neither the run nor the others: it is logged once, with its package, and its
        record says so.
        """
        caller: HookCaller = getattr(self._manager.hook, event)
        if caller.spec is None or set(facts) != set(caller.spec.argnames):
            raise TypeError(f"{event} takes other arguments than {sorted(facts)}.")
        for implementation in _in_order(caller):
            try:
                call(event, implementation, **deepcopy(facts))  # what a listener does to them stays there
            except FaultError as fault:
                self._report("events", implementation.plugin_name, event, str(fault))
        for name, action in self._tracking.told(event, facts, self.get):
            try:
                guarded(f"it raised at {event}", action)
            except FaultError as fault:
                self._report("tracker", self._named["tracker", _normal(name)].qualified, event, str(fault))

    def _report(self, kind: str, qualified: str, event: str, reason: str) -> None:
        if (kind, qualified, event) in self._reported:
            return
        self._reported.add((kind, qualified, event))
        for index, record in enumerate(self.components):
            if (record.kind, record.qualified) == (kind, qualified):
                self.components[index] = record.failed(reason)
                logger.warning(
                    "The plugin %s of %s: %s. The run continues.", record.name, record.owner, reason
                )


def _in_order(hook: HookCaller) -> list[HookImpl]:
    """A hook's implementations, stage1's own first but for those marked `tryfirst` or `trylast`."""
    return sorted(hook.get_hookimpls(), key=lambda found: found.trylast - found.tryfirst)


def _normal(name: str) -> str:
    distribution, colon, rest = name.rpartition(":")
    return f"{canonical(distribution)}:{rest}" if colon else name

"""The suites without pytest: what `stage1 plugins check` runs."""

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any, Literal, NamedTuple
from unittest import SkipTest

from stage1.plugins import Kind, PluginRecord, load_plugins
from stage1.plugins.faults import raised
from stage1.testing.adapter import AdapterSuite
from stage1.testing.base import Suite
from stage1.testing.compressor import CompressorSuite
from stage1.testing.loss import LossSuite
from stage1.testing.task import TaskSuite
from stage1.text import visible

SUITES: dict[str, type[Suite]] = {
    "compressor": CompressorSuite,
    "adapter": AdapterSuite,
    "loss": LossSuite,
    "tasks": TaskSuite,
}
"""The suite of each kind of plugin that has one."""


def installed(kind: Kind, name: str) -> type[Any]:
    """The class of an installed plugin, to test another one together with it.

    Raises:
        UsageError: there is none of this name.
    """
    return load_plugins().get(kind, name)


class Outcome(NamedTuple):
    """What became of a check."""

    check: str  # the method's name
    meaning: str  # first line of its docstring
    status: Literal["ok", "failed", "skipped"]
    detail: str  # why it failed or does not apply


def suite_of(record: PluginRecord, options: Mapping[str, Any]) -> type[Suite]:
    """The suite as an installed plugin's author would have written it."""
    filled = {"component": record.cls, "options": dict(options), "folder": record.folder}
    suite = SUITES[record.kind]
    wanted = {name: value for name, value in filled.items() if hasattr(suite, name)}
    return type(f"Test{record.name}", (suite,), wanted)


def check(
    record: PluginRecord, options: Mapping[str, Any], advance: Callable[[int], None] = lambda done: None
) -> list[Outcome]:
    """Run every check on a plugin that loaded; one that fails does not stop the others.

    With STAGE1_TRACEBACK=1, `detail` holds the traceback.
    """
    suite = suite_of(record, options)
    outcomes = []
    for name in suite.checks():
        method = getattr(suite(), name)
        status, detail = _outcome(method)
        outcomes.append(Outcome(name, (method.__doc__ or "").partition("\n")[0], status, detail))
        advance(1)
    return outcomes


def _outcome(method: Callable[[], None]) -> tuple[Literal["ok", "failed", "skipped"], str]:
    try:
        with redirect_stdout(sys.stderr):  # standard output holds the result alone
            method()
    except SkipTest as reason:
        return "skipped", visible(str(reason))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin's sys.exit() is no Exception
        if os.environ.get("STAGE1_TRACEBACK"):
            return "failed", "\n".join(map(visible, traceback.format_exc().splitlines()))
        # What a check says needs no name of an exception in front.
        said = str(error).partition("\n")[0] if isinstance(error, AssertionError) else ""
        return "failed", visible(said) or raised(error)
    return "ok", ""

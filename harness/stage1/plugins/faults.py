"""Running a plugin's code, and showing its words, without trusting it."""

import logging
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from inspect import cleandoc
from typing import Any, TypeVar

from pluggy import HookImpl

from stage1.text import one_line

T = TypeVar("T")
logger = logging.getLogger("stage1.plugins")


class FaultError(Exception):
    """What a plugin did wrong, in one line."""

    def __init__(self, what: str) -> None:
        super().__init__(one_line(what))


def guarded(what: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a plugin's code; what it prints goes to standard error, away from `--json`.

    Raises:
        FaultError: it raised anything at all, SystemExit included. Only Ctrl-C stays Ctrl-C.
    """
    try:
        with redirect_stdout(sys.stderr):
            return function(*args, **kwargs)
    except (FaultError, KeyboardInterrupt):
        raise
    except BaseException as error:  # sys.exit() and pytest.skip() at import are no Exceptions
        logger.debug("a plugin failed: %s", what, exc_info=error)
        raise FaultError(f"{what}: {raised(error)}") from error


def call(hook: str, implementation: HookImpl, **facts: Any) -> Any:
    """Call a plugin's implementation of `hook` with those of the hook's arguments that it names.

    Raises:
        FaultError: it raised.
    """
    arguments = (facts[name] for name in implementation.argnames)
    return guarded(f"{hook} raised", implementation.function, *arguments)


def raised(error: BaseException) -> str:
    """'ValueError: …', cut where it gets long."""
    return one_line(traceback.format_exception_only(error)[-1], 300)


def first_line(text: object) -> str:
    """The first line of a docstring; empty where there is none."""
    return one_line(cleandoc(text).partition("\n")[0]) if isinstance(text, str) else ""

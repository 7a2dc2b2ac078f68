"""Running a plugin's code without trusting it."""

import logging
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from textwrap import shorten
from typing import Any, TypeVar

T = TypeVar("T")
logger = logging.getLogger("stage1.plugins")


class FaultError(Exception):
    """What a plugin did wrong, in one line."""


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
        raise FaultError(f"{what}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """'ValueError: …', cut where it gets long."""
    return shorten(traceback.format_exception_only(error)[-1], 300, placeholder=" …")

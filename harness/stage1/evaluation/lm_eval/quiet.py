"""lm-eval without its log, bars and prints: stage1 has a progress of its own, and `--json` is JSON alone."""

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partialmethod

from tqdm import tqdm


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Only errors from lm-eval."""
    log, begin = logging.getLogger("lm_eval"), tqdm.__init__
    level, alone = log.level, os.environ.get("DISABLE_MULTIPROC")
    log.setLevel(logging.ERROR)
    tqdm.__init__ = partialmethod(begin, disable=True)
    os.environ["DISABLE_MULTIPROC"] = "1"  # its bootstrap forks, which a process with a GPU does not survive
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
        tqdm.__init__ = begin
        if alone is None:
            del os.environ["DISABLE_MULTIPROC"]

"""transformers without its own words on the terminal: the caller shows progress and raises errors itself."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from transformers import modeling_gguf_pytorch_utils as gguf
from transformers.utils import logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No notices, no bars and no tables of missing weights inside the block."""
    log, reader = cast(Any, logging), cast(Any, gguf)
    verbosity, bars, bar = log.get_verbosity(), log.is_progress_bar_enabled(), reader.tqdm
    log.set_verbosity_error()
    log.disable_progress_bar()
    reader.tqdm = partial(bar, disable=True)  # this one asks nobody whether bars are wanted
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        reader.tqdm = bar
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


@contextmanager
def silent_output() -> Iterator[None]:
    """Nothing on standard output inside the block, from no language: tokenizers prints what a file holds."""
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    if sys.stdout is not None:
        sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)

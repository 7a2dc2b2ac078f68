"""What every case needs and none should wait for: small settings, and the embedded model, loaded once."""

import os
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants

import stage1.scaffold
import stage1.session
from stage1.config import ModelConfig, RunConfig, merge, validate
from stage1.evaluation.lm_eval.catalogue import everything
from stage1.plugins import load_plugins
from stage1.progress import Progress

SMALL = (
    *("train.steps=3", "train.until=steps", "train.check_every=2", "train.save_every=1"),
    *("train.check_questions=2", "data.train=30", "data.selection=6", "eval.limit=4", "eval.resamples=20"),
    *("eval.max_new_tokens=4", "compressor.ratio=64", "adapter=linear"),
)
"""A run in less than a second."""


Given = tuple[list[str], tuple[str, ...]]
"""A command's words, and how names begin of what it may change beside its output."""

OUT = "out"
"""How the names begin of what commands are told to write."""


def config(*settings: str) -> RunConfig:
    """A configuration of a small run."""
    return validate(merge({}, {}, (*SMALL, *settings)))


def hub(folder: Path) -> Path:
    """Where the Hub's libraries keep what they have read."""
    return folder / "hub"


def settings(*more: str) -> list[str]:
    """`--set` for a run in less than a second."""
    return [word for text in (*SMALL, *more) for word in ("--set", text)]


def begin(folder: Path) -> None:
    """Make this process one whose forks are quick, quiet, and change nothing but what lies in `folder`."""
    sys.dont_write_bytecode = True
    home = folder / "home"
    home.mkdir()
    os.environ.update(dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), str(home)))
    os.environ["HF_HOME"] = str(hub(folder))
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # names that nobody has are asked of nobody
    _share_the_model()
    _share_the_tasks()


def _share_the_model() -> None:
    """Let every session of this process and of its forks use one embedded model."""
    load, loaded = stage1.session.FrozenModel, {}

    def shared(settings: ModelConfig, **how: Any) -> Any:
        if settings.name != "tiny":
            return load(settings, **how)
        key = (settings.trust_remote_code, how["dtype"], how["device"])
        if key not in loaded:
            loaded[key] = load(settings, **how)
            loaded[key].llm, loaded[key].sha256  # now, and not in each fork
        return loaded[key]

    stage1.session.FrozenModel = shared  # type: ignore[assignment, misc]


def _share_the_tasks() -> None:
    """Read lm-eval's thousands of task files once; `plugins new` asks them for names that are taken."""
    known = everything(load_plugins(), Progress())
    vars(stage1.scaffold)["everything"] = lambda *_: known

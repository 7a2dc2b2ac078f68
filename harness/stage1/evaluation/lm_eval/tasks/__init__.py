"""SQuAD v1.1 and tiny-squad as lm-eval tasks: the YAML files beside this module."""

from pathlib import Path

from pluggy import HookimplMarker


@HookimplMarker("stage1")  # `stage1.hookimpl`, whose package names what lies in higher layers
def stage1_tasks() -> Path:
    """The folder of the task files."""
    return Path(__file__).parent

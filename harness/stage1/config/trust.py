"""Whether the Python code in a model's folder may run: what is typed in a call decides, never a file.

A run's folder, a configuration file and a checkpoint may be a stranger's. Where one says
`trust_remote_code: true`, that is a need, which the user is told of, and no permission.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from stage1.config.settings import RunConfig, named
from stage1.config.tree import merge, validate
from stage1.errors import UsageError


def granted(file: Mapping[str, Any], typed: Mapping[str, Any], settings: Iterable[str]) -> RunConfig:
    """The configuration of a tree that comes from files and of what was typed, see `merge` and `validate`.

    Raises:
        ConfigError: with every issue found.
        UsageError: the files want a model's Python code to run, and nothing typed says so.
    """
    settings = list(settings)
    config = validate(merge(file, typed, settings))
    if config.model.trust_remote_code:
        require_trust(
            config.model.name, validate(merge(untrusting(file), typed, settings)).model.trust_remote_code
        )
    return config


def untrusting(file: Mapping[str, Any]) -> dict[str, Any]:
    """The tree `file` without its `model.trust_remote_code`."""
    model = named(file.get("model"))
    if not isinstance(model, Mapping):
        return dict(file)
    return {**file, "model": {key: value for key, value in model.items() if key != "trust_remote_code"}}


def require_trust(model: str, trusted: bool) -> None:
    """Refuse to go on with `model`, which a file says needs its own Python code, unless `trusted`."""
    if not trusted:
        raise UsageError(
            f"The model {model!r} was used with Python code from its own folder, which a file cannot allow.",
            "If you trust its author, repeat the command with --trust-remote-code "
            "(in Python: trust_remote_code=True).",
        )

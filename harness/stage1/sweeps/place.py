"""Where a sweep is carried out: from what the user types to an executor."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from stage1.config import parse_setting
from stage1.config.messages import issues_of
from stage1.errors import ConfigError, UsageError
from stage1.plugins import Registry
from stage1.plugins.executors import Executor


def executor(
    on: str | None, jobs: int | None, options: Mapping[str, Any], registry: Registry
) -> Executor | None:
    """The executor of that name with its options checked; None: this process, one run after the other.

    Args:
        on: `NAME` or `NAME://ADDRESS`; by default `local` for several jobs.
        jobs: how many runs at a time.
        options: the executor's own.
        registry: where it is looked up.

    Raises:
        UsageError: there is no such executor.
        ConfigError: an option cannot be used.
    """
    if on is None:
        if options:
            raise UsageError(f"--on-set {next(iter(options))} is for an executor.", "Name one by --on.")
        if jobs in (None, 1):
            return None
        on = "local"
    name, address, _ = on.partition("://")
    cls = registry.get("executor", name)
    given = {**options, **({"address": on} if address else {}), **({} if jobs is None else {"jobs": jobs})}
    try:
        return cls(cls.Config.model_validate(given))
    except ValidationError as error:
        raise ConfigError(issues_of(error, cls.Config, f"--on {name}")) from None


def read_options(texts: Sequence[str]) -> dict[str, Any]:
    """`--on-set KEY=VALUE` texts; values are read as YAML, like those of `--set`.

    Raises:
        UsageError: one is not KEY=VALUE.
    """
    return {".".join(path): value for path, value in map(parse_setting, texts)}

"""Errors that a user can cause, each with its remedy; the command line shows them without a traceback."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from stage1.text import one_line


class Stage1Error(Exception):
    """Something went wrong that the user can understand; `exit_code` is what the program ends with.

    `problem` says what is wrong, and `remedy` what to do about it.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem, self.remedy = one_line(problem), one_line(remedy)
        super().__init__("\n".join(part for part in (self.problem, self.remedy) if part))


class UsageError(Stage1Error):
    """The request cannot be carried out as it stands: a bad option, file, model or folder."""

    exit_code = 2


class ConfigIssue(NamedTuple):
    """One thing that is wrong with a configuration."""

    path: str  # dotted, as `--set` takes it: "compressor.dim"
    message: str  # what is wrong, and the nearest valid choice

    def __str__(self) -> str:
        return one_line(f"{self.path}: {self.message}" if self.path else self.message)


MOST_ISSUES = 50
"""Issues that are shown of one configuration."""


class ConfigError(UsageError):
    """Everything that is wrong with a configuration, found in one pass: its `issues`."""

    def __init__(self, issues: Sequence[ConfigIssue]) -> None:
        self.issues = list(issues)
        more = len(self.issues) - MOST_ISSUES
        shown = [*map(str, self.issues[:MOST_ISSUES]), *([f"… and {more} more."] if more > 0 else [])]
        Exception.__init__(self, "\n".join(shown))
        self.problem, self.remedy = str(self), ""


class PluginError(Stage1Error):
    """A plugin raised; the message names the plugin and the distribution it came from."""


class TrainingError(Stage1Error):
    """Training cannot go on; the last good state is on disk."""


def suggest(name: str, choices: Iterable[str]) -> str:
    """'Did you mean …? Choices: …' for a name that is not among the choices."""
    choices = sorted(choices)
    near = get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Choices: {', '.join(choices) or '(none)'}."

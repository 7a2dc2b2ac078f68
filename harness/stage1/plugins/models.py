"""Models that plugins bring, by name."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar


class Model(ABC):
    """A model that a package brings or knows where to find: a folder of transformers, or a GGUF file.

    The first line of the docstring is what `stage1 plugins list` shows.
    """

    name: ClassVar[str]
    """What the user types: `--model NAME`."""

    @abstractmethod
    def path(self) -> Path:
        """Where it lies: an absolute path. It is asked for when the model is, not before.

        Raises:
            UsageError: it is not installed here; with the command that brings it.
        """

"""How long work reports that it goes on. The core calls it; the command line decides what is shown."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Says nothing. The command line's subclass draws bars with rates."""

    @contextmanager
    def task(self, label: str, total: int | None = None, unit: str = "") -> Iterator[Callable[[int], None]]:
        """A piece of work of `total` units; call the yielded function with the number just done."""
        yield lambda done: None

    def note(self, message: str) -> None:
        """A line the user should not miss: a cache hit, a halved batch, truncated prompts."""

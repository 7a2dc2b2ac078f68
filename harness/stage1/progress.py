"""How long work reports that it goes on. The core calls it; the command line decides what is shown."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


class Progress:
    """Says nothing, and keeps the time. The command line's subclasses draw bars with rates.

    Attributes:
        begun: when it was made, by `time.perf_counter`.
        seconds: label → wall time of that work, without what was reported inside of it as work of its own.
    """

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self._inside = [0.0]  # for each piece of work that is going on, the time of those inside of it

    def restart(self) -> None:
        """Count from here on: another run begins."""
        self.begun, self.seconds = time.perf_counter(), {}

    @contextmanager
    def task(self, label: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
        """A piece of work of `total` units; call the yielded function with the number just done."""
        with self.timed(label), self.shown(label, total, unit) as advance:
            yield advance

    @contextmanager
    def timed(self, label: str) -> Iterator[None]:
        """A piece of work that is counted under `label` and not shown."""
        begun = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            took = time.perf_counter() - begun
            self.seconds[label] = self.seconds.get(label, 0.0) + took - self._inside.pop()
            self._inside[-1] += took

    @contextmanager
    def shown(self, label: str, total: int | None, unit: str) -> Iterator[Advance]:
        """How a piece of work is shown; here it is not."""
        yield lambda done: None

    def shares(self) -> tuple[float, dict[str, float]]:
        """Seconds since the beginning, and each label's share of them (0 to 1), the largest first."""
        whole = time.perf_counter() - self.begun
        shares = {label: seconds / whole for label, seconds in self.seconds.items()}
        return whole, dict(sorted(shares.items(), key=lambda item: -item[1]))

    def note(self, message: str) -> None:
        """A line the user should not miss: a cache hit, a halved batch, truncated prompts."""


SILENT = Progress()
"""What is told where nobody listens: the default of an argument `progress`."""

"""Where results are printed."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from stage1.text import visible

WIDE = 200
"""Columns where there is no terminal: a file or a pipe should get whole lines."""


class _Console(Console):
    """A console to which names, documentation and answers of strangers are text, whatever they hold."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield segment._replace(text="\n".join(map(visible, segment.text.split("\n"))))


def make_console(*, stderr: bool = False) -> Console:
    """Standard output or error: coloured on a terminal, plain text elsewhere."""
    console = _Console(highlight=False, stderr=stderr)
    return console if console.is_terminal or stderr else _Console(highlight=False, width=WIDE)

"""Where results are printed."""

from collections.abc import Iterable
from functools import partial

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from stage1.text import visible_lines

WIDE = 200
"""Columns where there is no terminal: a file or a pipe should get whole lines."""


WIDEST = 1_000
"""Columns in which a table is measured, so that it shows how wide it would like to be."""


class _Console(Console):
    """A console to which names, documentation and answers of strangers are text, whatever they hold."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield segment._replace(text=visible_lines(segment.text))


def print_fitting(console: Console, tables: Iterable[Table]) -> None:
    """Print the first of `tables` that is not wider than the terminal, or else the last."""
    table = None
    for table in tables:
        if console.measure(table, options=console.options.update(width=WIDEST)).maximum <= console.width:
            break
    if table is not None:
        console.print(table)


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print lines of plain cells under their heads, on standard output."""
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    make_console().print(table)


def print_report(console: Console, tables: Iterable[Table], lines: Iterable[str]) -> None:
    """Print the widest of `tables` that fits, and what is said below it."""
    print_fitting(console, tables)
    console.print()
    for line in lines:
        say(console, line)


def say(console: Console, text: str | Text, style: str = "") -> None:
    """Print a line: broken between words where a terminal is too narrow for it, whole elsewhere."""
    console.print(text, style=style, soft_wrap=not console.is_terminal)


def make_console(*, stderr: bool = False) -> Console:
    """Standard output or error: coloured on a terminal, plain text elsewhere; texts are no markup."""
    make = partial(_Console, highlight=False, markup=False, emoji=False)
    console = make(stderr=stderr)
    return console if console.is_terminal or stderr else make(width=WIDE)

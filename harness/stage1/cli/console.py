"""Where results are printed."""

from rich.console import Console

WIDE = 200
"""Columns where there is no terminal: a file or a pipe should get whole lines."""


def make_console() -> Console:
    """Standard output: coloured on a terminal, plain text elsewhere."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDE)

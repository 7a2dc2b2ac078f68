"""`stage1 recipes` and `stage1 protocols`: ready-made settings, to use, to read and to change."""

import os
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from stage1.cli import completion, options
from stage1.errors import UsageError
from stage1.text import visible

if TYPE_CHECKING:  # pydantic takes longer to load than `--help` may
    from stage1.config.presets import Presets


def _commands(kind: str, about: str) -> typer.Typer:
    """The command that lists the presets of a `kind`, with `show` and `copy` below it."""
    app = typer.Typer(help=about)
    name = Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            autocompletion=completion.preset(kind),
            help=f"As `stage1 {kind}s` has it.",
        ),
    ]

    @app.callback(invoke_without_command=True)
    def list_(context: typer.Context, json: options.Json = False) -> None:
        if context.invoked_subcommand is not None:
            return
        from rich.table import Table

        from stage1.cli.console import make_console

        if json:
            listed = [{"name": p.name, "summary": p.summary} for p in _presets(kind).all()]
            options.print_json(listed)
            return
        table = Table(kind, "what it does", box=None, pad_edge=False)
        for preset in _presets(kind).all():
            table.add_row(preset.name, preset.summary)
        make_console().print(table)

    list_.__doc__ = about

    @app.command(help=f"Print a {kind}: settings, and the reasons for them.")
    def show(name: name) -> None:
        typer.echo(_presets(kind).find(name).text, nl=False)

    @app.command(help=f"Copy a {kind} to a file of your own, to change it.")
    def copy(
        name: name,
        file: Annotated[
            Path | None, typer.Argument(metavar="FILE", help="Where to; default: NAME.yaml in this folder.")
        ] = None,
    ) -> None:
        preset = _presets(kind).find(name)
        from stage1.files import write_atomic

        target = file or Path(f"{preset.name}.yaml")
        if os.path.lexists(target):
            raise UsageError(f"{target} exists already.", "Name another file, or remove that one.")
        write_atomic(target, preset.text.encode())
        name = visible(str(target))
        typer.echo(f"Wrote {name}.\nNext:\n  stage1 train {quote(name)}")

    return app


def _presets(kind: str) -> "Presets":
    from stage1.config.presets import PRESETS

    return PRESETS[kind]


recipes = _commands("recipe", "List the recipes; `stage1 train --recipe NAME` runs one.")
protocols = _commands("protocol", "List the protocols; `--protocol NAME` uses one.")

"""`stage1 config`, `recipes` and `protocols`: what a run would do, what can be set, what to start from."""

import os
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from stage1.cli import completion, groups, options
from stage1.errors import UsageError
from stage1.text import visible

if TYPE_CHECKING:  # pydantic takes longer to load than `--help` may
    from stage1.config.presets import Presets

app = typer.Typer(no_args_is_help=True, help="Show the resolved configuration, or its schema.")


@app.command()
@groups.grouped
def show(chosen: options.SeededRunOptions, *, json: options.Json = False) -> None:
    """Print the resolved configuration: every setting with its value, as YAML that `stage1 train` takes."""
    from stage1.plugins import fully_resolved, load_plugins, resolve

    config = chosen.configuration()
    whole = fully_resolved(config, resolve(config, load_plugins()))
    if json:
        options.print_json(whole.model_dump(mode="json"))
    else:
        typer.echo(whole.to_yaml(), nl=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, with the options of the installed plugins."""
    from stage1.plugins import config_schema, load_plugins

    options.print_json(config_schema(load_plugins()))


def _commands(kind: str, about: str) -> typer.Typer:
    """The command that lists the presets of a `kind`, with `show` and `copy` below it."""
    app = typer.Typer(help=about)
    name = Annotated[
        str,
        typer.Argument(
            metavar="NAME", autocompletion=completion.preset(kind), help=f"As `stage1 {kind}s` has it."
        ),
    ]

    @app.callback(invoke_without_command=True)
    def list_(context: typer.Context, json: options.Json = False) -> None:
        if context.invoked_subcommand is not None:
            return
        from stage1.cli.console import print_table

        presets = _presets(kind).all()
        if json:
            options.print_json([{"name": preset.name, "summary": preset.summary} for preset in presets])
        else:
            print_table((kind, "what it does"), ((preset.name, preset.summary) for preset in presets))

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

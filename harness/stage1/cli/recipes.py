"""`stage1 recipes`: ready-made configurations, to run, to read and to change."""

from pathlib import Path
from typing import Annotated

import typer

from stage1.cli import options
from stage1.config.recipes import find, recipes
from stage1.errors import UsageError

app = typer.Typer(help="List the recipes; `stage1 train --recipe NAME` runs one.")

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", autocompletion=options.complete_recipe, help="As `stage1 recipes` has it."
    ),
]


@app.callback(invoke_without_command=True)
def list_(context: typer.Context, json: options.Json = False) -> None:
    """List the recipes; `stage1 train --recipe NAME` runs one."""
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    from stage1.cli.console import make_console
    from stage1.files import to_json

    if json:
        typer.echo(to_json([{"name": r.name, "summary": r.summary} for r in recipes()]), nl=False)
        return
    table = Table("recipe", "what it does", box=None, pad_edge=False)
    for recipe in recipes():
        table.add_row(recipe.name, recipe.summary)
    make_console().print(table)


@app.command()
def show(name: Name) -> None:
    """Print a recipe: settings, and the reasons for them."""
    typer.echo(find(name).text, nl=False)


@app.command()
def copy(
    name: Name,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Where to; default: NAME.yaml in this folder.")
    ] = None,
) -> None:
    """Copy a recipe to a file of your own, to change it."""
    recipe = find(name)
    target = file or Path(f"{recipe.name}.yaml")
    try:
        with target.open("x", encoding="utf-8") as opened:
            opened.write(recipe.text)
    except FileExistsError:
        raise UsageError(f"{target} exists already.", "Name another file, or remove that one.") from None
    except OSError as error:
        raise UsageError(f"Cannot write {target}: {error.strerror}.", "Name another file.") from None
    typer.echo(f"Wrote {target}.\nNext:\n  stage1 train {target}")

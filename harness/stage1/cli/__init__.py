"""The command line: parse, call, print. Heavy imports sit inside the commands: `--help` is instant."""

import os
from typing import Any

import typer
from typer.core import TyperGroup

from stage1.cli import config, diagnose, evaluate, plugins, recipes, sweep, train
from stage1.errors import Stage1Error


class Program(TyperGroup):
    """Ends with 0 when done, 1 when it failed, 2 on wrong usage, 130 when interrupted.

    An error that the user can do something about is shown without a traceback; STAGE1_TRACEBACK=1 shows
    it with one, for the authors of plugins.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except Stage1Error as error:
            if os.environ.get("STAGE1_TRACEBACK"):
                raise
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as interrupt:
            typer.echo(f"Interrupted. {interrupt}".rstrip(), err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Program,
    name="stage1",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="How much can the input embeddings of a frozen Llama be squeezed before it stops answering?",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("eval")(evaluate.eval_)
app.command("sweep")(sweep.sweep)
app.command("diagnose")(diagnose.diagnose)
app.command("score")(evaluate.score)
app.command("push")(evaluate.push)
app.add_typer(plugins.app, name="plugins")
app.add_typer(config.app, name="config")
app.add_typer(recipes.app, name="recipes")


def _print_version(wanted: bool) -> None:
    if wanted:
        from stage1 import __version__

        typer.echo(f"stage1 {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
    ),
) -> None:
    pass


def main() -> None:
    """Run the program."""
    app()

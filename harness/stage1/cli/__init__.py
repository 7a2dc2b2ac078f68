"""The command line: parse, call, print. Heavy imports sit inside the commands: `--help` is instant."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from stage1.cli import config, diagnose, evaluate, plugins, runs, score, sweep, tasks, train
from stage1.errors import PluginError, Stage1Error, UsageError
from stage1.text import one_line

if TYPE_CHECKING:  # plugins load torch, and only a name that stage1 does not know asks for them
    from stage1.plugins import PluginRecord


@contextmanager
def _legible() -> Iterator[None]:
    """A wrong usage quotes the words that were typed, by a script maybe: they are shown, not obeyed."""
    try:
        yield
    except WrongUsage as error:
        error.message = one_line(error.message or "")
        raise


WrongUsage: Any = typer.BadParameter.__base__  # typer's own class has no public name


class Program(TyperGroup):
    """Ends with 0 when done, 1 when it failed, 2 on wrong usage, 130 when interrupted.

    An error that the user can do something about is shown without a traceback; STAGE1_TRACEBACK=1 shows
    it with one, for the authors of plugins. A name that is no command of stage1's is looked up among the
    plugins' commands.
    """

    foreign: "PluginRecord | None" = None  # the plugin's command that was asked for

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """stage1's own command of this name, else a plugin's; shell completion knows the former alone."""
        own = super().get_command(ctx, cmd_name)
        if own or ctx.resilient_parsing:
            return own
        from stage1.plugins import load_plugins

        self.foreign = load_plugins().command(cmd_name)
        return self.foreign.command

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with _legible():
                return super().invoke(ctx)
        except Stage1Error as error:
            if os.environ.get("STAGE1_TRACEBACK"):
                raise
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            typer.echo(f"Error: {one_line(str(error.filename))}: {error.strerror}.", err=True)
            raise typer.Exit(UsageError.exit_code) from None
        except KeyboardInterrupt as interrupt:
            typer.echo(f"Interrupted. {one_line(str(interrupt))}".rstrip(), err=True)
            raise typer.Exit(130) from None

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the words in front of the command."""
        with _legible():
            return super().make_context(*args, **kwargs)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; what is left to raise here is neither a wrong usage nor a request to exit."""
        try:
            return super().main(*args, **kwargs)
        except Exception as error:
            if self.foreign is None or os.environ.get("STAGE1_TRACEBACK"):
                raise
            from stage1.plugins.faults import raised

            name, owner = self.foreign.name, self.foreign.owner
            said = one_line(f"The command {name!r} of {owner} raised {raised(error)}")
            typer.echo(f"Error: {said}", err=True)
            typer.echo("STAGE1_TRACEBACK=1 shows the traceback.", err=True)
            raise SystemExit(PluginError.exit_code) from None


app = typer.Typer(
    cls=Program,
    name="stage1",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="How much can the input embeddings of a frozen Llama be squeezed before it stops answering?",
    epilog="Plugins may add commands; `stage1 plugins list` shows them.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("eval")(evaluate.eval_)
app.command("sweep")(sweep.sweep)
app.command("show")(runs.show)
app.command("compare")(runs.compare)
app.command("runs")(runs.runs)
app.command("verify")(runs.verify)
app.command("frontier")(sweep.frontier)
app.command("tasks")(tasks.tasks)
app.command(
    "lm-eval",
    add_help_option=False,  # --help is lm-eval's, too
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(tasks.lm_eval)
app.command("diagnose")(diagnose.diagnose)
app.command("report")(runs.report)
app.command("score")(score.score)
app.command("push")(runs.push)
app.add_typer(plugins.app, name="plugins")
app.add_typer(config.app, name="config")
app.add_typer(config.recipes, name="recipes")
app.add_typer(config.protocols, name="protocols")


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


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What writing raises where nothing more can be written; files of ours say which they are."""


def main() -> None:
    """Run the program; what it prints arrives, or it says that it does not."""
    # Its notices are for programmers; ours are errors with remedies. It reads this when it is imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if hasattr(sys.stdout, "reconfigure"):  # what the terminal's encoding lacks is written out
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        if error.errno not in FULL or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again at its end
        typer.echo(f"Error: Cannot write to standard output: {error.strerror}.", err=True)
        raise SystemExit(Stage1Error.exit_code) from None

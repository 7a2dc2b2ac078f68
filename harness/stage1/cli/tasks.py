"""`stage1 tasks` and `stage1 lm-eval`: what `stage1 eval RUN --tasks` can ask, and lm-eval itself."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from stage1.cli import options
from stage1.text import visible

if TYPE_CHECKING:  # `stage1 --help` loads no plugins
    from stage1.evaluation.lm_eval.catalogue import Task


def tasks(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="PATTERN",
            help="Part of a name, or a pattern such as 'arc_*'; upper and lower case are one.",
        ),
    ] = None,
    path: Annotated[
        bool,
        typer.Option("--path", help="Only the folders of tasks, a line each, for lm-eval's --include_path."),
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """List the tasks whose name has PATTERN; without one, those that stage1 and plugins bring."""
    from difflib import get_close_matches

    from stage1.cli.display import make_progress
    from stage1.errors import Stage1Error
    from stage1.evaluation.lm_eval.catalogue import LM_EVAL, everything, find
    from stage1.plugins import load_plugins

    registry, progress = load_plugins(), make_progress(quiet=quiet)
    if path:
        for _, folder in registry.task_folders():
            typer.echo(visible(str(folder)))
        return
    if pattern is None:
        known = everything(registry, progress)
        found = [task for task in known if task.source != LM_EVAL]
        closing = f"{LM_EVAL} has {len(known) - len(found):,} more: `stage1 tasks PATTERN` searches them all."
    else:
        found, closing = find(pattern, registry, progress), ""
    if json:
        options.print_json([task.as_dict() for task in found])
    elif found:
        _print(found, closing)
    if not found:
        near = get_close_matches(pattern or "", [task.name for task in everything(registry, progress)])
        remedy = f"Did you mean {' or '.join(near)}?" if near else "Try a shorter part of it."
        raise Stage1Error(f"No task has {pattern!r} in its name.", remedy)


def _print(found: "list[Task]", closing: str) -> None:
    from stage1.cli.console import make_console, print_table
    from stage1.evaluation.lm_eval.catalogue import hint

    rows = [
        (task.name if task.name.isprintable() else repr(task.name), task.kind, task.source)
        for task in found
        if not task.hidden_by
    ]
    print_table(("name", "kind", "source"), rows)
    for line in (*(hint(task) for task in found if task.hidden_by), closing):
        if line:
            make_console().print(f"\n{line}", soft_wrap=True)


ABOUT = """\
stage1's part, the rest is lm-eval's own:
  --model stage1 --model_args run=RUN[,NAME=VALUE,…]
    run=RUN                  the folder of a trained run
    row=bottleneck|text      ask through the bottleneck (default), or the bare model
    scope=prompt|all         what crosses: a request's context (default), or the scored continuation too
    model=FOLDER             where the run's model lies, if elsewhere
    trust_remote_code=True   the model may run Python code of its own"""


def lm_eval(context: typer.Context) -> None:
    """Run lm-eval's own command line, which knows trained runs as models and stage1's tasks.

    `stage1 lm-eval run --model stage1 --model_args run=RUN --tasks squad`; every other word is lm-eval's, see
    `stage1 lm-eval run --help`. After RUN there may be `,row=text` (the bare model), `,scope=all`,
    `,model=FOLDER` and `,trust_remote_code=True` (the model may run Python code of its own).
    """
    from lm_eval.__main__ import cli_evaluate

    import stage1.evaluation.lm_eval.registered  # noqa: F401 - registers the model
    from stage1.plugins import load_plugins

    words = list(context.args)
    if words[:1] in ([], ["-h"], ["--help"]):
        typer.echo(f"{ABOUT}\n")
    takes_tasks = words[:1] in (["run"], ["ls"], ["validate"])
    named = any(word.startswith("--include_path") for word in words)
    if takes_tasks and not named and (folders := load_plugins().task_folders()):
        _, ours = folders[0]  # it takes one, and stage1's own come first
        words += ["--include_path", str(ours)]
    sys.argv = ["lm-eval", *words]
    cli_evaluate()

"""`stage1 tasks`: what `stage1 eval RUN --tasks` can ask."""

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
    from rich.markup import escape
    from rich.table import Table

    from stage1.cli.console import make_console
    from stage1.evaluation.lm_eval.catalogue import hint

    table = Table("name", "kind", "source", box=None, pad_edge=False)
    for task in found:
        if not task.hidden_by:
            name = task.name if task.name.isprintable() else repr(task.name)
            table.add_row(escape(name), task.kind, escape(task.source))
    console = make_console()
    console.print(table)
    for line in (*(hint(task) for task in found if task.hidden_by), closing):
        if line:
            console.print(f"\n{line}", markup=False, soft_wrap=True)

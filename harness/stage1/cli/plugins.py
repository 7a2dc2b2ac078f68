"""`stage1 plugins`: what is installed, what works, and what can be set."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stage1.cli import completion, options, plugin_check, plugin_new

if TYPE_CHECKING:  # `stage1 --help` must load neither torch nor plugins
    from stage1.plugins import PluginRecord, Registry

app = typer.Typer(
    no_args_is_help=True, help="List, show and check the installed plugins, or begin a new one."
)
app.command("check")(plugin_check.check)
app.command("new")(plugin_new.new)


@app.command("list")
def list_(
    json: options.Json = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a plugin failed.")] = False,
    hooks: Annotated[bool, typer.Option("--hooks", help="List every hook and who implements it.")] = False,
) -> None:
    """List every plugin: name, kind, distribution, summary, and whether it works."""
    from stage1.plugins import load_plugins

    registry = load_plugins()
    if hooks:
        _list_hooks(registry, json)
    else:
        _list_plugins(registry, json)
    if strict and any(record.status != "ok" for record in registry.components):
        raise typer.Exit(1)


def _list_plugins(registry: "Registry", json: bool) -> None:

    if json:
        options.print_json([record.as_dict() for record in registry.components])
        return
    rows = [
        (r.name, r.kind, str(r.owner), r.summary, f"{r.status}: {r.reason}" if r.reason else r.status)
        for r in registry.components
    ]
    _print_table(("name", "kind", "distribution", "summary", "status"), rows)


def _list_hooks(registry: "Registry", json: bool) -> None:

    if json:
        listed = [
            {
                "hook": hook.name,
                "summary": hook.summary,
                "implementers": [{"plugin": name, **owner._asdict()} for name, owner in hook.implementers],
            }
            for hook in registry.hooks()
        ]
        options.print_json(listed)
        return
    rows = [
        (
            hook.name,
            hook.summary,
            "\n".join(f"{name} ({owner})" for name, owner in hook.implementers) or "nobody",
        )
        for hook in registry.hooks()
    ]
    _print_table(("hook", "summary", "implemented by"), rows)


def _print_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from stage1.cli.console import make_console

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    make_console().print(table)


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(autocompletion=completion.plugin(None), help="As `plugins list` has it.")
    ],
    json: options.Json = False,
) -> None:
    """Show a plugin's documentation and every option with type, default, unit and meaning."""
    from stage1.errors import UsageError, suggest
    from stage1.plugins import docs, load_plugins

    records = load_plugins().components
    found = [r for r in records if name in (r.name, r.qualified)]
    if not found:
        raise UsageError(f"Unknown plugin {name!r}.", suggest(name, {r.name for r in records}))
    described = [
        {
            **record.as_dict(),
            "doc": _doc(record),
            "options": [option._asdict() for option in docs(record.cls.Config)] if record.cls else [],
        }
        for record in found
    ]
    if json:
        options.print_json(described)
    else:
        for plugin in described:
            _print_plugin(plugin)


def _doc(record: "PluginRecord") -> str:
    """What there is to say of a plugin beside its options."""
    import inspect

    if described := record.cls or record.other:
        return inspect.getdoc(described) or ""
    if record.command:
        return f"{record.command.help or ''}\n\n`stage1 {record.name} --help` shows how it is used.".strip()
    if record.folder:
        return f"{record.summary}\n\nThe task files are in `{record.folder}`.".strip()
    if record.status == "failed":
        return f"It failed: {record.reason}."
    return f"{record.summary}\n\n`stage1 plugins list --hooks` shows what it listens to.".strip()


def _print_plugin(plugin: dict[str, Any]) -> None:
    from rich.markdown import Markdown
    from rich.markup import escape

    from stage1.cli.console import make_console

    console = make_console()
    origin = f"{plugin['kind']} of {plugin['distribution']} {plugin['version']}"
    console.print(f"[bold]{escape(plugin['name'])}[/bold]  {escape(origin)}")
    console.print(Markdown(plugin["doc"]))
    columns = ("name", "type", "default", "constraints", "description")
    if plugin["options"]:
        _print_table(
            ("option", *columns[1:]), ([option[column] for column in columns] for option in plugin["options"])
        )
    elif plugin["kind"] in ("compressor", "adapter", "loss") and plugin["status"] == "ok":
        console.print("It has no options.")
    console.print()

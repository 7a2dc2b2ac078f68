"""`stage1 plugins`: what is installed, what works, and what can be set."""

from typing import Annotated, Any

import typer

from stage1.cli import options

app = typer.Typer(no_args_is_help=True, help="List the installed plugins, or show one with its options.")


@app.command("list")
def list_(
    json: options.Json = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a plugin failed.")] = False,
) -> None:
    """List every plugin: name, kind, distribution, summary, and whether it works."""
    from rich.markup import escape
    from rich.table import Table

    from stage1.cli.console import make_console
    from stage1.files import to_json
    from stage1.plugins import load_plugins

    records = load_plugins().components
    if json:
        typer.echo(to_json([record.as_dict() for record in records]), nl=False)
    else:
        table = Table("name", "kind", "distribution", "summary", "status", box=None, pad_edge=False)
        for r in records:
            status = f"{r.status}: {r.reason}" if r.reason else r.status
            cells = (r.name, r.kind, f"{r.distribution} {r.version}", r.summary, status)
            table.add_row(*(escape(cell or "") for cell in cells))
        make_console().print(table)
    if strict and any(record.status != "ok" for record in records):
        raise typer.Exit(1)


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(autocompletion=options.complete(None), help="As `plugins list` has it.")
    ],
    json: options.Json = False,
) -> None:
    """Show a plugin's documentation and every option with type, default, unit and meaning."""
    import inspect

    from stage1.errors import UsageError, suggest
    from stage1.files import to_json
    from stage1.plugins import docs, load_plugins

    records = [r for r in load_plugins().components if r.cls is not None]
    found = [r for r in records if name in (r.name, r.qualified)]
    if not found:
        raise UsageError(f"Unknown plugin {name!r}.", suggest(name, {r.name for r in records}))
    described = [
        {
            **record.as_dict(),
            "doc": inspect.getdoc(record.cls) or "",
            "options": [option._asdict() for option in docs(record.cls.Config)],
        }
        for record in found
        if record.cls is not None
    ]
    if json:
        typer.echo(to_json(described), nl=False)
    else:
        for plugin in described:
            _print_plugin(plugin)


def _print_plugin(plugin: dict[str, Any]) -> None:
    from rich.markdown import Markdown
    from rich.markup import escape
    from rich.table import Table

    from stage1.cli.console import make_console

    console = make_console()
    origin = f"{plugin['kind']} of {plugin['distribution']} {plugin['version']}"
    console.print(f"[bold]{escape(plugin['name'])}[/bold]  {escape(origin)}")
    console.print(Markdown(plugin["doc"]))
    columns = ("name", "type", "default", "constraints", "description")
    table = Table("option", *columns[1:], box=None, pad_edge=False)
    for option in plugin["options"]:
        table.add_row(*(escape(option[column]) for column in columns))
    console.print(table if plugin["options"] else "It has no options.")
    console.print()

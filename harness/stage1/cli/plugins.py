"""`stage1 plugins`: what is installed, what works, and what can be set; a package to begin with."""

from inspect import getdoc
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stage1.cli import completion, options
from stage1.errors import UsageError, suggest
from stage1.text import visible

if TYPE_CHECKING:  # `stage1 --help` must load neither torch nor plugins
    from rich.tree import Tree

    from stage1.plugins import PluginRecord
    from stage1.testing.runner import Outcome

app = typer.Typer(
    no_args_is_help=True, help="List, show and check the installed plugins, or begin a new one."
)

Name = Annotated[
    str, typer.Argument(autocompletion=completion.plugin(None), help="As `plugins list` has it.")
]


@app.command()
def check(
    name: Name,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="An option of the plugin; may be repeated."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Run the conformance suite on an installed plugin; exit with 1 if a check fails.

    It checks what `stage1.testing` offers to a plugin's own tests: shapes, the token-wise promise, padding
    and batch invariance, determinism, gradients, saving and loading, options, bits, devices and bfloat16.
    STAGE1_TRACEBACK=1 shows where a check failed.
    """
    from stage1.cli.display import make_progress
    from stage1.config import parse_setting
    from stage1.testing.runner import check as run
    from stage1.testing.runner import suite_of

    given: dict[str, Any] = {}
    for text in settings or []:
        path, value = parse_setting(text)
        if len(path) > 1:
            raise UsageError(f"--set {text!r} names no option of {name}.", "Write --set dim=64, for example.")
        given[path[0]] = value
    progress, failed, reports = make_progress(quiet=json), False, []
    for record in _checkable(name, given):
        total = len(suite_of(record, given).checks())
        with progress.task(f"Checking {record.name}", total, "checks") as done:
            outcomes = run(record, given, done)
        failed |= any(outcome.status == "failed" for outcome in outcomes)
        reports.append({**record.as_dict(), "checks": [outcome._asdict() for outcome in outcomes]})
        if not json:
            _print_outcomes(record, outcomes)
    if json:
        options.print_json(reports)
    if failed:
        raise typer.Exit(1)


def _checkable(name: str, given: dict[str, Any]) -> list["PluginRecord"]:
    """The plugins of that name that can be checked.

    Raises:
        UsageError: there is none, one failed to load, or one does not take the options given.
    """
    from stage1.config.messages import validated
    from stage1.plugins import load_plugins
    from stage1.testing.runner import SUITES

    every = load_plugins().components
    usable = [record for record in every if record.kind in SUITES and record.status == "ok"]
    found = [record for record in every if name in (record.name, record.qualified)]
    checkable = [record for record in found if record in usable]
    broken = [record for record in found if record.status == "failed"]
    if broken and not checkable:
        raise UsageError(
            f"The plugin {name!r} of {broken[0].owner} failed to load: {broken[0].reason}.",
            f"Repair {broken[0].distribution}, then check again.",
        )
    if not checkable:
        problem = (
            f"{name!r} is of kind {found[0].kind}, which has no suite"
            if found
            else f"Unknown plugin {name!r}"
        )
        raise UsageError(f"{problem}.", suggest(name, {record.name for record in usable}))
    for record in checkable:
        if record.cls is not None:
            validated(record.cls.Config, given)
    return checkable


def _print_outcomes(record: "PluginRecord", outcomes: list["Outcome"]) -> None:
    from rich.table import Table
    from rich.text import Text

    from stage1.cli.console import make_console

    console = make_console()
    console.print(Text.assemble((record.name, "bold"), f"  {record.kind} of {record.owner}"))
    table = Table("check", "result", "", box=None, pad_edge=False)
    colours = {"ok": "green", "failed": "bold red", "skipped": "dim"}
    for outcome in outcomes:
        status = Text(outcome.status, colours[outcome.status])
        title = outcome.check.removeprefix("test_").replace("_", " ")
        table.add_row(title, status, outcome.detail or outcome.meaning)
    console.print(table)
    counts = {status: sum(outcome.status == status for outcome in outcomes) for status in colours}
    console.print(f"{counts['ok']} ok, {counts['failed']} failed, {counts['skipped']} not applicable.\n")


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What users will type, such as top_k.")],
    kind: Annotated[str, completion.one_of("compressor|adapter|loss|task", "What the plugin is to be.")],
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the package's folder goes; default: this folder.")
    ] = Path(),
    json: options.Json = False,
) -> None:
    """Write an installable package: a working plugin, its tests, its README and a CI file."""
    from stage1.cli.console import make_console
    from stage1.cli.display import make_progress
    from stage1.scaffold import create

    package = create(name, kind, output, make_progress(quiet=json))
    if json:
        options.print_json({**package._asdict(), "folder": str(package.folder)})
        return
    make_console().print(_tree(str(package.folder), package.files))
    typer.echo("Next:\n" + "\n".join(f"  {visible(command)}" for command in package.next))


def _tree(label: str, files: list[str]) -> "Tree":
    from rich.tree import Tree

    root = PurePosixPath()
    branches = {root: Tree(label)}
    for file in map(PurePosixPath, files):
        for path in (*reversed(file.parents), file):
            if path not in branches:
                branches[path] = branches[path.parent].add(path.name)
    return branches[root]


@app.command("list")
def list_(
    json: options.Json = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if a plugin failed.")] = False,
    hooks: Annotated[bool, typer.Option("--hooks", help="List every hook and who implements it.")] = False,
) -> None:
    """List every plugin: name, kind, distribution, summary, and whether it works."""
    from stage1.cli.console import print_table
    from stage1.plugins import load_plugins

    registry = load_plugins()
    records = registry.components
    if hooks and json:
        told = [
            {
                "hook": hook.name,
                "summary": hook.summary,
                "implementers": [{"plugin": name, **owner._asdict()} for name, owner in hook.implementers],
            }
            for hook in registry.hooks()
        ]
        options.print_json(told)
    elif hooks:
        lines = [
            (h.name, h.summary, "\n".join(f"{name} ({owner})" for name, owner in h.implementers) or "nobody")
            for h in registry.hooks()
        ]
        print_table(("hook", "summary", "implemented by"), lines)
    elif json:
        options.print_json([record.as_dict() for record in records])
    else:
        rows = [
            (r.name, r.kind, str(r.owner), r.summary, f"{r.status}: {r.reason}" if r.reason else r.status)
            for r in records
        ]
        print_table(("name", "kind", "distribution", "summary", "status"), rows)
    if strict and any(record.status != "ok" for record in records):
        raise typer.Exit(1)


@app.command()
def show(name: Name, json: options.Json = False) -> None:
    """Show a plugin's documentation and every option with type, default, unit and meaning."""
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
    if described := record.cls or record.other:
        return getdoc(described) or ""
    if record.command:
        return f"{record.command.help or ''}\n\n`stage1 {record.name} --help` shows how it is used.".strip()
    if record.folder:
        return f"{record.summary}\n\nThe task files are in `{record.folder}`.".strip()
    if record.status == "failed":
        return f"It failed: {record.reason}."
    return f"{record.summary}\n\n`stage1 plugins list --hooks` shows what it listens to.".strip()


def _print_plugin(plugin: dict[str, Any]) -> None:
    from rich.markdown import Markdown
    from rich.text import Text

    from stage1.cli.console import make_console, print_table

    console = make_console()
    origin = f"{plugin['kind']} of {plugin['distribution']} {plugin['version']}"
    console.print(Text.assemble((plugin["name"], "bold"), f"  {origin}"))
    console.print(Markdown(plugin["doc"]))
    if plugin["options"]:
        columns = ("option", "type", "default", "constraints", "description")
        print_table(columns, (option.values() for option in plugin["options"]))
    elif plugin["kind"] in ("compressor", "adapter", "loss") and plugin["status"] == "ok":
        console.print("It has no options.")
    console.print()

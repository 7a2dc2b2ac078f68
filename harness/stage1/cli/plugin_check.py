"""`stage1 plugins check`: the conformance suite on an installed plugin."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stage1.cli import completion, options

if TYPE_CHECKING:  # `stage1 --help` must load neither torch nor plugins
    from stage1.plugins import PluginRecord
    from stage1.testing.runner import Outcome


def check(
    name: Annotated[
        str, typer.Argument(autocompletion=completion.plugin(None), help="As `plugins list` has it.")
    ],
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
    from stage1.errors import UsageError
    from stage1.testing.runner import check as run
    from stage1.testing.runner import suite_of

    given: dict[str, Any] = {}
    for text in settings or []:
        path, value = parse_setting(text)
        if len(path) > 1:
            raise UsageError(f"--set {text!r} names no option of {name}.", "Write --set dim=64, for example.")
        given[path[0]] = value
    progress, failed, reports = make_progress(quiet=json), False, []
    for record in _records(name, given):
        with progress.task(
            f"Checking {record.name}", len(suite_of(record, given).checks()), "checks"
        ) as done:
            outcomes = run(record, given, done)
        failed |= any(outcome.status == "failed" for outcome in outcomes)
        reports.append({**record.as_dict(), "checks": [outcome._asdict() for outcome in outcomes]})
        if not json:
            _print(record, outcomes)
    if json:
        options.print_json(reports)
    if failed:
        raise typer.Exit(1)


def _records(name: str, given: dict[str, Any]) -> list["PluginRecord"]:
    """The plugins of that name that can be checked.

    Raises:
        UsageError: there is none, one failed to load, or one does not take the options given.
    """
    from pydantic import ValidationError

    from stage1.config.messages import issues_of
    from stage1.errors import ConfigError, UsageError, suggest
    from stage1.plugins import load_plugins
    from stage1.testing.runner import SUITES

    every = load_plugins().components
    found = [record for record in every if name in (record.name, record.qualified)]
    checkable = [record for record in found if record.kind in SUITES and record.status == "ok"]
    broken = [record for record in found if record.status == "failed"]
    if broken and not checkable:
        raise UsageError(
            f"The plugin {name!r} of {broken[0].owner} failed to load: {broken[0].reason}.",
            f"Repair {broken[0].distribution}, then check again.",
        )
    if not checkable:
        names = {record.name for record in every if record.kind in SUITES and record.status == "ok"}
        problem = (
            f"{name!r} is of kind {found[0].kind}, which has no suite"
            if found
            else f"Unknown plugin {name!r}"
        )
        raise UsageError(f"{problem}.", suggest(name, names))
    for record in checkable:
        if record.cls is not None:
            try:
                record.cls.Config.model_validate(given)
            except ValidationError as error:
                issues = list(issues_of(error, record.cls.Config, ""))
                raise ConfigError(issues) from None
    return checkable


def _print(record: "PluginRecord", outcomes: list["Outcome"]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from stage1.cli.console import make_console

    console = make_console()
    console.print(f"[bold]{escape(record.name)}[/bold]  {record.kind} of {escape(str(record.owner))}")
    table = Table("check", "result", "", box=None, pad_edge=False)
    colours = {"ok": "green", "failed": "bold red", "skipped": "dim"}
    for outcome in outcomes:
        status = f"[{colours[outcome.status]}]{outcome.status}[/]"
        title = outcome.check.removeprefix("test_").replace("_", " ")
        table.add_row(title, status, escape(outcome.detail or outcome.meaning))
    console.print(table)
    counts = {status: sum(outcome.status == status for outcome in outcomes) for status in colours}
    console.print(f"{counts['ok']} ok, {counts['failed']} failed, {counts['skipped']} not applicable.\n")

"""`stage1 plugins new`: a package to begin with."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from stage1.cli import options
from stage1.text import visible

if TYPE_CHECKING:
    from rich.tree import Tree


def _complete_kind(incomplete: str) -> list[str]:
    from stage1.scaffold import KINDS

    return [kind for kind in KINDS if kind.startswith(incomplete)]


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What users will type, such as top_k.")],
    kind: Annotated[
        str,
        typer.Option(
            metavar="compressor|adapter|loss|task",
            autocompletion=_complete_kind,
            help="What the plugin is to be.",
        ),
    ],
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


def _tree(label: str, files: list[str]) -> Tree:
    from rich.markup import escape
    from rich.tree import Tree

    root = PurePosixPath()
    branches = {root: Tree(escape(label))}
    for file in map(PurePosixPath, files):
        for path in (*reversed(file.parents), file):
            if path not in branches:
                branches[path] = branches[path.parent].add(escape(path.name))
    return branches[root]

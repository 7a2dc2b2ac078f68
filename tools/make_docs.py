"""Write docs/commands.md: every command, setting and option of the built-in plugins.

python tools/make_docs.py
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from stage1.config import DEFAULTS, ComponentChoice, Phase, RunConfig
from stage1.plugins import Option, docs, load_plugins

TARGET = Path(__file__).resolve().parent.parent / "docs" / "commands.md"


def commands() -> str:
    """The commands with their options, as typer documents them."""
    command = [sys.executable, "-m", "typer", "stage1.cli", "utils", "docs", "--name", "stage1"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def table(options: list[Option]) -> Iterator[str]:
    """Options as a Markdown table."""
    yield "| option | type | default | limits | meaning |"
    yield "|---|---|---|---|---|"
    for option in options:
        cells = (f"`{option.name}`", option.type, option.default, option.constraints, option.description)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def run_options() -> Iterator[Option]:
    """Every setting that is no plugin's, by its dotted path."""
    sections = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    for option in docs(RunConfig):
        section = sections[option.name]
        if option.name == "then":
            yield option
            section = Phase
        if isinstance(section, type) and issubclass(section, BaseModel) and section is not ComponentChoice:
            for inner in docs(section):
                yield inner._replace(name=f"{option.name}.{inner.name}")
        elif option.name == "compressors":
            yield option._replace(type="list of name | settings", default=f"[{DEFAULTS['compressor']}]")
        elif option.name != "adapter":
            yield option
    for name, default in DEFAULTS.items():
        yield Option(f"{name}.name", "string", default, "", f"Name of the {name}, see `stage1 plugins list`.")


def settings() -> Iterator[str]:
    """Every setting of a run and every option of the built-in plugins."""
    yield "# Settings"
    yield ""
    yield "In a YAML file, or with `--set KEY=VALUE`. `stage1 config show` prints them with their values."
    yield ""
    yield from table(list(run_options()))
    yield ""
    yield "# Options of the built-in plugins"
    for record in load_plugins().components:
        if record.cls is not None and record.distribution == "stage1":
            section = "losses." + record.name if record.kind == "loss" else record.kind
            yield f"\n## {record.kind} `{record.name}`\n"
            yield f"{record.summary}\n"
            options = [option._replace(name=f"{section}.{option.name}") for option in docs(record.cls.Config)]
            yield from table(options) if options else ["It has no options."]


def main() -> None:
    """Write the page."""
    page = f"<!-- Written by tools/make_docs.py; do not edit. -->\n\n{commands()}\n" + "\n".join(settings())
    TARGET.write_text(page.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The tutorial of plugins (docs/plugins.md): every block is run, in order, and what it prints is compared.

A `sh` block is a script; `python`, `yaml` and `toml` blocks begin with the file they are (of a TOML file, the
tables that are shown are replaced or added); a `text` block is what the script before it prints.
"""

import math
import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from conftest import ROOT
from wheels import Environment

PAGE = ROOT / "docs" / "plugins.md"
FIRST_PART = "# Other kinds of plugins"
"""Where the tutorial proper ends."""

OFFLINE = {
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this as "no isolation": the build backend is installed here
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "COLUMNS": "250",  # tables are not wrapped
}
"""So that the page's own commands work without a network."""


class Block(NamedTuple):
    """A fenced block of the page."""

    language: str
    text: str
    line: int  # where it begins


def blocks(page: str) -> list[Block]:
    """The page's blocks, in their order."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", page, re.M | re.S)
    return [Block(match[1], match[2], page.count("\n", 0, match.start()) + 1) for match in found]


class Workplace:
    """An empty folder, and an environment that has stage1 from its wheel."""

    def __init__(self, folder: Path) -> None:
        self.here, self._where = folder / "work", folder / "where"
        self.here.mkdir()
        environment = Environment(folder)
        environment.build([ROOT])
        self.site = environment.site
        pytest_program = environment.scripts / "pytest"
        pytest_program.write_text(f'#!/bin/sh\nexec "{environment.scripts}/python" -m pytest "$@"\n')
        pytest_program.chmod(0o755)
        path = f"{environment.scripts}{os.pathsep}{os.environ['PATH']}"
        self.env = {**os.environ, **OFFLINE, "PATH": path, "STAGE1_CACHE": str(folder / "cache")}
        self.env.pop("PYTHONPATH", None)  # would come before what is installed

    def play(self, page: list[Block]) -> None:
        """Run the blocks."""
        printed = ""
        for block in page:
            match block.language:
                case "sh":
                    printed = self._run(block)
                case "text":
                    compare(block, printed)
                case "python" | "yaml":
                    self._file(block).write_text(block.text, encoding="utf-8")
                case "toml":
                    self._file(block).write_text(with_tables(self._file(block).read_text(), block.text))
                case other:
                    raise AssertionError(f"line {block.line}: what is to be done with {other!r}?")

    def _run(self, block: Block) -> str:
        """Run a script where the one before it ended; what it printed."""
        script = f"set -euo pipefail\n{block.text}\npwd > '{self._where}'"
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.here, env=self.env, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"line {block.line}:\n{block.text}\n{done.stdout}\n{done.stderr}"
        self.here = Path(self._where.read_text().strip())
        return done.stdout

    def _file(self, block: Block) -> Path:
        name = re.match(r"# (\S+)\n", block.text)
        assert name, f"line {block.line}: which file is it?"
        path = self.here / name[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def with_tables(old: str, shown: str) -> str:
    """A TOML file with the tables that a block shows, in the place of those of the same name."""
    for header, body in re.findall(r"^(\[.+?\]\n)(.*?)(?=^\[|\Z)", shown, re.M | re.S):
        table = header + body.rstrip() + "\n"
        new, count = re.subn(rf"^{re.escape(header)}(?:.+\n)*", table.replace("\\", r"\\"), old, flags=re.M)
        old = new if count else f"{old.rstrip()}\n\n{table}"
    return old


def compare(block: Block, printed: str) -> None:
    """Every line of the block was printed, in this order."""
    lines = iter(printed.splitlines())
    for wanted in filter(str.strip, block.text.splitlines()):
        if wanted.strip() != "…":
            found = any(agree(wanted, line) for line in lines)
            assert found, f"line {block.line}: not printed, or not here: {wanted!r}\n{printed}"


def agree(wanted: str, line: str) -> bool:
    """Whether two lines are equal but for white space, decimals within a tenth, and what `…` leaves out."""
    start, ellipsis, _ = " ".join(wanted.split()).partition("…")
    words = " ".join(line.split())
    number = r"(?<![\w.])(\d+\.\d+)"
    ours, theirs = re.split(number, start.strip()), re.split(number, words)
    if ellipsis:
        theirs = theirs[: len(ours)]
        theirs[-1] = theirs[-1][: len(ours[-1])]
    return len(ours) == len(theirs) and all(
        math.isclose(float(one), float(two), rel_tol=0.1) if index % 2 else one.strip() == two.strip()
        for index, (one, two) in enumerate(zip(ours, theirs, strict=True))
    )


@pytest.mark.slow
def test_every_block_does_what_the_page_says(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    border = page.count("\n", 0, page.index(FIRST_PART)) + 1
    every, workplace = blocks(page), Workplace(tmp_path)
    workplace.play([block for block in every if block.line < border])
    assert (workplace.site / "stage1_top_k" / "__init__.py").is_file(), "the wheel is not what is installed"
    assert (workplace.here / "dist" / "stage1_top_k-0.1.0-py3-none-any.whl").is_file()
    assert (workplace.here / "runs" / "chain" / "results.json").is_file()
    others = [block for block in every if block.line > border]
    assert others
    workplace.play(others)


def test_the_page_names_what_no_test_runs() -> None:
    assert "no test runs" in PAGE.read_text(encoding="utf-8")
    assert {block.language for block in blocks(PAGE.read_text())} == {"sh", "text", "python", "yaml", "toml"}

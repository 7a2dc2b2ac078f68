"""The documentation says what the code does."""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import make_docs
import plugin_reference
import pytest
import typer

import stage1
from conftest import ROOT
from stage1.cli import app
from stage1.plugins import docs, interfaces, load_plugins, tensors
from stage1.plugins import hooks as specifications

DOCS = ROOT / "docs"


def walk(command: Any, path: str = "stage1") -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, f"{path} {name}")


def test_every_command_and_option_is_in_the_reference() -> None:
    page = (DOCS / "commands.md").read_text()
    for path, command in walk(typer.main.get_command(app)):
        if path == "stage1":
            continue
        heading = re.search(rf"^#+ `{path}`$(.*?)(?=^#+ `|\Z)", page, re.M | re.S)
        assert heading, f"{path} is not in docs/commands.md"
        for parameter in command.params:
            for flag in (*parameter.opts, *parameter.secondary_opts):
                if flag.startswith("--"):
                    assert f"{flag}" in heading[1], f"{path} {flag} is not in docs/commands.md"


def test_every_setting_and_plugin_option_is_in_the_reference() -> None:
    """The generator itself decides what there is; the page must be what it writes today."""
    page = (DOCS / "commands.md").read_text()
    for line in make_docs.settings():
        assert line in page, f"run tools/make_docs.py: {line!r}"
    ours = (record for record in load_plugins().components if record.distribution == "stage1")
    named = {record.name for record in ours if record.cls is not None}
    assert named
    assert all(f"`{name}`" in page for name in named)


def test_every_plugin_and_every_option_explains_itself() -> None:
    for record in load_plugins().components:
        if record.cls is not None and record.distribution == "stage1":
            assert len(record.summary) > 20, record.name
            assert all(option.description for option in docs(record.cls.Config)), record.name


def test_the_reference_of_plugins_is_what_the_code_says() -> None:
    page = plugin_reference.TARGET.read_text(encoding="utf-8")
    assert page == plugin_reference.reference(), "run tools/make_docs.py"


def test_the_reference_of_plugins_has_every_hook_interface_and_check() -> None:
    """Names as Python finds them, which the generator, reading the sources, may have overlooked."""
    page = plugin_reference.TARGET.read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### `(\w+)(.*?)(?=^##|\Z)", page, re.M | re.S))
    hooks = {name for name in vars(specifications) if name.startswith("stage1_")}
    public = {name for name in stage1.__all__ if name not in ("__version__", "hookimpl")}
    for module in (interfaces, tensors):
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            public.add(name)
            members = {**vars(value), **value.__annotations__} if isinstance(value, type) else {}
            wanted = {member for member in members if not member.startswith("_")} - plugin_reference.INNER
            assert {member for member in wanted if f"`{member}" not in sections[name]} == set(), name
    for name, suite in plugin_reference.suites().items():
        assert {check for check in suite.checks() if f"`{check}`" not in sections[name]} == set(), name
    assert {"CompressorSuite", "AdapterSuite", "LossSuite", "TaskSuite"} < sections.keys()
    assert hooks
    assert (hooks | public) - sections.keys() == set()


@pytest.mark.parametrize(
    "source",
    [
        "def added(run): pass",
        "class Added:\n    'Something.'\n    size: int = 0",
        "class Added:\n    'Something.'\n    def forward(self): pass",
        "class Added: pass",
        "class Added:\n    def __init__(self): pass",
        "ADDED = 3",
    ],
)
def test_what_is_not_documented_stops_the_reference(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "undocumented.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "undocumented", raising=False)
    with pytest.raises(ValueError, match="has no documentation"):
        plugin_reference.Source(import_module("undocumented")).entries(set())


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)


@pytest.mark.parametrize("page", ["README.md", "docs/plugins.md"])
def test_python_blocks_compile_and_name_what_exists(page: str) -> None:
    blocks = python_blocks((ROOT / page).read_text())
    assert blocks
    for block in blocks:
        compile(block, page, "exec")
        for names in re.findall(r"^from stage1 import (.+)$", block, re.M):
            assert all(hasattr(stage1, name.strip()) for name in names.split(",")), names


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_importing_stage1_and_help_load_neither_torch_nor_plugins() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['stage1', '--help']\n"
        "import stage1\n"
        "from stage1.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as ended:\n    assert not ended.code\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'datasets', 'stage1_compressors', 'stage1_adapters'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"
    assert "train" in result.stdout

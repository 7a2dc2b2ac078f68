"""The documentation says what the code does."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import make_docs
import pytest
import typer

from conftest import ROOT, small_config
from plugin_sites import Site
from stage1 import hookspecs
from stage1.cli import app
from stage1.inputs import load_inputs
from stage1.plugins import docs, load_plugins, resolve
from stage1.progress import Progress
from stage1.runs import Run
from stage1.train import Trainer

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
    named = {record.name for record in load_plugins().components if record.distribution == "stage1"}
    assert all(f"`{name}`" in page for name in named)


def test_every_plugin_and_every_option_explains_itself() -> None:
    for record in load_plugins().components:
        if record.cls is not None and record.distribution == "stage1":
            assert len(record.summary) > 20, record.name
            assert all(option.description for option in docs(record.cls.Config)), record.name


def test_every_hook_is_documented() -> None:
    page = (DOCS / "plugins.md").read_text()
    hooks = [name for name in vars(hookspecs) if name.startswith("stage1_")]
    assert hooks
    assert [name for name in hooks if f"`{name}" not in page] == []


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)


@pytest.mark.parametrize("page", ["README.md", "docs/plugins.md"])
def test_python_blocks_compile_and_name_what_exists(page: str) -> None:
    import stage1

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


def test_the_loss_of_the_plugin_page_trains(site: Site, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "plugins.md").read_text()
    site.install("page", {"loss": next(block for block in python_blocks(page) if "stage1_losses" in block)})
    registry = site.load()
    few = ("train.steps=2", "train.check_every=1", "train.batch_prompts=2", "train.check_questions=2")
    config = small_config("losses={last_token: 1}", "data.selection=20", f"output={tmp_path / 'run'}", *few)
    inputs = load_inputs(config, Progress(), weights="all")
    run = Run.create(config)
    Trainer(resolve(config, registry), inputs, registry, Progress()).train(run)
    *_, last = run.metrics()
    assert last["terms"]["last_token"]["value"] > 0

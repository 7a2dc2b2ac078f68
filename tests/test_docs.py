"""The documentation says what the code does."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import griffe
import make_docs
import pytest
import typer
import yaml

import stage1
from conftest import ROOT
from stage1 import testing
from stage1.cli import app
from stage1.config.presets import PROTOCOLS, RECIPES
from stage1.plugins import docs, load_plugins
from stage1.plugins import hooks as specifications

DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
[PLUGIN] = [each["mkdocstrings"] for each in SITE["plugins"] if "mkdocstrings" in each]
OPTIONS = PLUGIN["handlers"]["python"]["options"]


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


def members(documented: griffe.Object) -> Iterator[griffe.Object]:
    """What the site shows of a directive: the thing itself and, all the way down, its public members."""
    yield documented
    hidden = re.compile("|".join(each.removeprefix("!") for each in OPTIONS["filters"]))
    if isinstance(documented, griffe.Module | griffe.Class):
        for name, member in documented.members.items():
            if isinstance(member, griffe.Object) and not hidden.search(name):
                yield from members(member)


def explained(member: griffe.Object) -> bool:
    """It has a docstring; or overrides what is explained, or is told of in its class's docstring."""
    if member.has_docstring:
        return True
    if not isinstance(owner := member.parent, griffe.Class):
        return False
    told = owner.docstring.value if owner.docstring else ""
    bases = [base.members[member.name] for base in owner.mro() if member.name in base.members]
    return re.search(
        rf"^    [\w, ]*\b{member.name}\b[\w, ]*:|`{member.name}`", told, re.M
    ) is not None or any(isinstance(base, griffe.Object) and explained(base) for base in bases)


@cache
def core() -> griffe.Module:
    """The core as the site reads it: its sources, through the extensions of mkdocs.yml."""
    names = [str(ROOT / name) if name.endswith(".py") else name for name in OPTIONS["extensions"]]
    found = griffe.load("stage1", search_paths=[ROOT / "harness"], extensions=griffe.load_extensions(*names))
    assert isinstance(found, griffe.Module)
    return found


def shown(page: str) -> dict[str, griffe.Object]:
    """What a page shows of the core, by the path under which the code knows it."""
    paths = re.findall(r"^::: stage1\.(\S+)$", (DOCS / page).read_text(), re.M)
    named = [core()[path] for path in paths]
    tops = [each.final_target if isinstance(each, griffe.Alias) else each for each in named]
    return {member.path: member for top in tops for member in members(top)}


def test_the_reference_of_plugins_has_every_hook_interface_and_suite() -> None:
    """Names as Python finds them, which griffe, reading the sources, may have overlooked."""
    reference = shown("plugins-reference.md")
    hooks = {
        f"{specifications.__name__}.{name}" for name in vars(specifications) if name.startswith("stage1_")
    }
    assert hooks
    assert hooks - reference.keys() == set()
    names = {path.rpartition(".")[2] for path in (*reference, *shown("python.md"))}
    assert set(stage1.__all__) - names == {"__version__", "hookimpl"}
    suites = {name for name in vars(testing) if name.endswith("Suite")}
    assert {"CompressorSuite", "AdapterSuite", "LossSuite", "TaskSuite"} <= suites <= names
    for name in vars(testing.CompressorSuite):
        if name.startswith("test_"):
            assert f"{testing.CompressorSuite.__module__}.CompressorSuite.{name}" in reference


def test_everything_in_the_reference_of_plugins_is_explained() -> None:
    reference = shown("plugins-reference.md")
    assert len(reference) > 100
    assert [path for path, member in reference.items() if not explained(member)] == []


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)


@pytest.mark.parametrize("page", ["README.md", "docs/plugins.md", "docs/python.md"])
def test_python_blocks_compile_and_name_what_exists(page: str) -> None:
    blocks = python_blocks((ROOT / page).read_text())
    assert blocks
    for block in blocks:
        compile(block, page, "exec")
        for names in re.findall(r"^from stage1 import (.+)$", block, re.M):
            assert all(hasattr(stage1, name.strip()) for name in names.split(",")), names


def test_the_readme_is_short_and_names_every_method() -> None:
    page = (ROOT / "README.md").read_text()
    assert len(page.splitlines()) < 150
    ours = [record for record in load_plugins().components if record.distribution == "stage1"]
    methods = {record.name for record in ours if record.kind in ("compressor", "adapter", "loss")}
    presets = {preset.name for presets in (RECIPES, PROTOCOLS) for preset in presets.all()}
    assert {"pca", "residual", "recon"} < methods
    assert {name for name in methods | presets if f"`{name}`" not in page} == set()


def test_the_architecture_names_what_exists() -> None:
    """Files by their path in the core, and behind some of them what to look for there."""
    page = (DOCS / "architecture.md").read_text()
    named = re.findall(r"`(\w+/\w+\.py)`(?:,? `([\w.]+)`)?", page)
    assert len(named) > 30
    for path, name in named:
        file = next(place for root in ("harness/stage1", ".") if (place := ROOT / root / path).exists())
        assert all(part in file.read_text() for part in name.split(".")), f"{path} has no {name}"
    [tree] = re.findall(r"```text\n(harness/stage1/.*?)```", page, re.S)
    core = {each.name for each in (ROOT / "harness" / "stage1").iterdir()}
    shown = set(re.findall(r"[\w.]+", tree))
    assert core - shown <= {"__init__.py", "__main__.py", "__pycache__", "py.typed"}


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == stage1.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"

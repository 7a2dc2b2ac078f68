"""A stranger's plugin: written in one file, built into a wheel, installed, used, with no change to stage1."""

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from conftest import SMALL, Cli

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "stage1-firstdims"
version = "0.3.1"
dependencies = ["stage1"]

[project.entry-points.stage1]
firstdims = "stage1_firstdims"

[tool.hatch.build.targets.wheel]
include = ["stage1_firstdims.py"]
"""

PLUGIN = '''
"""Keep the first few dimensions."""

from stage1 import Code, Compressor, SizeConfig, hookimpl


class FirstDims(Compressor):
    """Sends the first dimensions of each embedding and drops the rest."""

    name = "firstdims"
    Config = SizeConfig

    @property
    def code_dim(self):
        return self.config.width(self.embed_dim)

    def forward(self, embeds, mask) -> Code:
        return self.pointwise(embeds[..., : self.code_dim], mask)


@hookimpl
def stage1_compressors():
    return FirstDims
'''


def pip(*arguments: str) -> None:
    """Run pip without the network."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        *arguments,
        "--no-deps",
        "--no-index",
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the plugin is installed: built from its source, installed from the wheel."""
    folder = tmp_path_factory.mktemp("firstdims")
    source, wheels, site = folder / "source", folder / "wheels", folder / "site"
    source.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "stage1_firstdims.py").write_text(PLUGIN)
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(wheels), str(source))
    [wheel] = wheels.glob("*.whl")
    pip("install", "--target", str(site), str(wheel))
    path = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{site}{os.pathsep}{path}" if path else str(site)}


def test_it_is_listed_beside_the_built_in_plugins(cli: Cli, installed: dict[str, str]) -> None:
    run = cli("plugins", "list", "--json", "--strict", env=installed)
    assert run.returncode == 0, run.stderr
    records = {(record["kind"], record["name"]): record for record in json.loads(run.stdout)}
    assert records["compressor", "firstdims"] == {
        "name": "firstdims",
        "kind": "compressor",
        "distribution": "stage1-firstdims",
        "version": "0.3.1",
        "summary": "Sends the first dimensions of each embedding and drops the rest.",
        "status": "ok",
        "reason": "",
    }
    assert records["compressor", "pca"]["distribution"] == "stage1"


def test_its_options_are_documented(cli: Cli, installed: dict[str, str]) -> None:
    run = cli("plugins", "show", "firstdims", env=installed)
    assert run.returncode == 0, run.stderr
    words = " ".join(run.stdout.split())
    for text in (
        "Sends the first dimensions",
        "stage1-firstdims",
        "ratio",
        "8.0",
        "dim",
        "overrides `ratio`",
    ):
        assert text in words, text


def test_it_trains_and_its_run_knows_whose_it_is(cli: Cli, installed: dict[str, str], tmp_path: Path) -> None:
    settings = [word for setting in (*SMALL, "compressor.dim=16") for word in ("--set", setting)]
    arguments = ("--compressor", "firstdims", "--adapter", "linear", "--no-eval", "--json", "--output", "run")
    run = cli("train", *arguments, *settings, env=installed)
    assert run.returncode == 0, run.stderr
    json.loads(run.stdout)
    saved = json.loads((tmp_path / "run" / "bottleneck.json").read_text())["compressor"]
    assert saved == {
        "name": "firstdims",
        "distribution": "stage1-firstdims",
        "version": "0.3.1",
        "config": {"ratio": 8.0, "dim": 16},
    }

    again = cli("eval", "run", "--limit", "4", "--json", env=installed)
    assert again.returncode == 0, again.stderr
    assert "bottleneck" in {row["row"] for row in json.loads(again.stdout)["rows"]}

    without = cli("eval", "run", "--limit", "4")
    assert without.returncode == 2
    assert "pip install stage1-firstdims" in without.stderr
    assert "Traceback" not in without.stderr


def test_a_wrong_option_of_it_is_refused_before_anything_is_written(
    cli: Cli, installed: dict[str, str], tmp_path: Path
) -> None:
    run = cli(
        "train", "--compressor", "firstdims", "--set", "compressor.dimm=3", "--output", "run", env=installed
    )
    assert run.returncode == 2
    assert "compressor.dimm: unknown option" in run.stderr
    assert "'dim'?" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "run").exists()


def test_a_broken_plugin_is_shown_and_fails_only_a_strict_list(cli: Cli, tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "stage1_broken-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stage1-broken\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[stage1]\nbroken = stage1_broken\n")
    (site / "stage1_broken.py").write_text(
        dedent(
            """
            print("noise on standard output")
            raise SystemExit("no licence found")
            """
        )
    )
    env = {"PYTHONPATH": str(site)}
    run = cli("plugins", "list", "--json", env=env)
    assert run.returncode == 0, run.stderr
    [record] = [record for record in json.loads(run.stdout) if record["status"] == "failed"]
    assert (record["name"], record["distribution"], record["version"]) == ("broken", "stage1-broken", "0.1")
    assert "no licence found" in record["reason"]
    strict = cli("plugins", "list", "--strict", env=env)
    assert strict.returncode == 1
    assert "no licence found" in " ".join(strict.stdout.split())


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
    cli: Cli, tmp_path: Path
) -> None:
    info = tmp_path / "site" / "stage1_moody-2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stage1-moody\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[stage1]\nmoody = stage1_moody\n")
    (tmp_path / "site" / "stage1_moody.py").write_text(MOODY)
    env = {"PYTHONPATH": str(tmp_path / "site")}
    small = [word for setting in (*SMALL, "train.save_every=5") for word in ("--set", setting)]
    run = cli("train", "--adapter", "moody", "--no-eval", "--output", "run", *small, env=env)
    assert run.returncode == 1
    assert "'moody' of stage1-moody 2.0 raised ValueError: not today" in run.stderr
    assert "stage1_moody.py, line" in run.stderr
    assert "stage1 train --resume --output run" in run.stderr
    assert "Traceback" not in run.stderr
    again = cli("train", "--resume", "--output", "run", "--no-eval", "--json", env={**env, "CALM": "1"})
    assert again.returncode == 0, again.stderr
    assert "Resumed after step 10" in again.stderr
    shown = cli("train", "--adapter", "moody", "--no-eval", *small, env={**env, "STAGE1_TRACEBACK": "1"})
    assert "Traceback" in shown.stderr

"""stage1, the example and new plugins as users get them: built into wheels, installed in an environment of
their own, and run from a folder whose packages have the names of the repository's folders.
"""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from zipfile import ZipFile

import pytest

from conftest import GENERATED, ROOT, SMALL, Invoke, settings_args
from stage1.scaffold import named
from wheels import Environment

FOLDERS = [ROOT / "harness" / "stage1", *sorted(ROOT.glob("plugins/*/stage1_*"))]
UNRELATED = ("plugins", "plugins/compressors", "plugins/adapters", "harness", "harness/stage1", "tests")

Stage1 = Callable[..., CompletedProcess[str]]

pytestmark = pytest.mark.slow  # an environment is built, and each command starts torch anew


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with packages that must not be imported."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in UNRELATED:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('unrelated')")
    return folder


@pytest.fixture(scope="module")
def stage1(installed: Environment, elsewhere: Path) -> Stage1:
    """Run the installed `stage1 …` in the folder `elsewhere`."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> CompletedProcess[str]:
        return installed.run("stage1", *arguments, cwd=elsewhere, env=env)

    return run


@pytest.fixture(scope="module")
def trained(stage1: Stage1, elsewhere: Path) -> Path:
    """The folder of a run in which the example and a generated plugin had their parts."""
    done = stage1(
        "train",
        *("--compressor", "pca", "--compressor", "quantize", "--adapter", "additive"),
        *("--loss", "recon", "--loss", "relative=0.1", "--loss", GENERATED["loss"]),
        *("--output", "run", "--json", *settings_args()),
        *settings_args(["compressor.dim=16", "quantize.bits=4", "adapter.knots=8"]),
        *settings_args(["keep_special=false"]),  # so that every token's bits are the code's
    )
    assert done.returncode == 0, done.stderr
    shown, kept = json.loads(done.stdout), read(elsewhere / "run" / "results.json")
    assert shown == shown | kept
    return elsewhere / "run"


def read(path: Path) -> Any:
    checksums = ("sha256", "files")
    return {key: value for key, value in json.loads(path.read_text()).items() if key not in checksums}


def whose(kind: str) -> str:
    """The distribution of the generated plugin of a kind."""
    return named(GENERATED[kind], kind).distribution


def test_the_wheel_of_stage1_holds_its_packages_whole(installed: Environment) -> None:
    [wheel] = installed.wheels.glob("stage1-*.whl")
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert len(FOLDERS) == 8
    assert names == {
        path.relative_to(folder.parent).as_posix()
        for folder in FOLDERS
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names >= {f"{folder.name}/py.typed" for folder in FOLDERS}
    assert names >= {
        "stage1_models/tiny/model/model.safetensors",
        "stage1_models/tiny/model/tokenizer.json",
        "stage1/config/recipes/two_phase.yaml",
        "stage1_datasets/tasks/squad.yaml",
        "stage1_datasets/tasks/tiny-squad.yaml",
    }


def test_everything_of_stage1_comes_from_its_wheel(installed: Environment, elsewhere: Path) -> None:
    program = f"""
import importlib, json, sys
from importlib.metadata import distribution

wheel = distribution("stage1")
files = [importlib.import_module(name).__file__ for name in {[folder.name for folder in FOLDERS]}]
unrelated = 0
for name in {UNRELATED}:
    try:
        importlib.import_module(name.replace("/", "."))
    except RuntimeError:
        unrelated += 1
print(json.dumps({{
    "files": [*files, str(wheel.locate_file("stage1/__init__.py"))],
    "origin": json.loads(wheel.read_text("direct_url.json")),
    "path": sys.path,
    "unrelated": unrelated,
}}))
"""
    run = installed.run("python", "-c", program, cwd=elsewhere)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert all(Path(file).is_relative_to(installed.site) for file in found["files"]), found["files"]
    assert found["origin"]["url"].endswith(".whl")
    assert not {str(folder.parent) for folder in FOLDERS} & set(found["path"])
    assert found["unrelated"] == len(UNRELATED), "the packages of this folder are not in the way"


def test_all_plugins_are_listed_and_well(installed: Environment, elsewhere: Path) -> None:
    # As a module: the folder's own packages come first on the path then.
    run = installed.run("python", "-m", "stage1", "plugins", "list", "--json", "--strict", cwd=elsewhere)
    assert run.returncode == 0, run.stderr
    records = json.loads(run.stdout)
    assert {record["status"] for record in records} == {"ok"}
    assert all(len(record["summary"]) > 20 for record in records)
    owners = {(r["kind"], r["name"]): (r["distribution"], r["version"]) for r in records}
    assert {key: owner for key, owner in owners.items() if owner[0] != "stage1"} == {
        ("adapter", "additive"): ("stage1-additive", "0.1.0"),
        ("loss", "relative"): ("stage1-additive", "0.1.0"),
        ("compressor", "topk"): ("stage1-topk", "0.1.0"),
        ("compressor", "conv_autoencoder"): ("stage1-autoencoder", "0.1.0"),
        ("compressor", "entropy_coded"): ("stage1-entropy", "0.1.0"),
        ("loss", "rate"): ("stage1-entropy", "0.1.0"),
        **{
            ("tasks" if kind == "task" else kind, name): (whose(kind), "0.1.0")
            for kind, name in GENERATED.items()
        },
    }
    assert owners["compressor", "pca"] == ("stage1", "0.1.0")
    assert owners["events", "jsonl"] == ("stage1", "0.1.0")


def test_one_passes_the_check_of_conformance(stage1: Stage1) -> None:
    run = stage1("plugins", "check", "relative", "--json")
    assert run.returncode == 0, run.stdout + run.stderr
    [report] = json.loads(run.stdout)
    assert report["name"] == "relative"
    statuses = [check["status"] for check in report["checks"]]
    assert statuses.count("ok") >= 8
    assert set(statuses) <= {"ok", "skipped"}


def test_a_run_with_all_of_them_pays_for_the_indices_alone(trained: Path) -> None:
    results = read(trained / "results.json")
    assert results["rate"]["bits_per_token"] == 16 * 4
    assert {"linear", "bottleneck"} <= {row["row"] for row in results["rows"]}
    assert results["reconstruction"]["recon"] < 0.5

    owners = {
        key: plugin["distribution"] for key, plugin in read(trained / "manifest.json")["plugins"].items()
    }
    assert owners == {
        "compressors.0": "stage1",
        "compressors.1": "stage1",
        "adapter": "stage1-additive",
        "losses.recon": "stage1",
        "losses.relative": "stage1-additive",
        f"losses.{GENERATED['loss']}": whose("loss"),
    }


def test_measured_again_it_gives_the_same_results(trained: Path, stage1: Stage1, tmp_path: Path) -> None:
    results = read(trained / "results.json")
    (trained / "results.json").unlink()
    run = stage1("eval", "run", "--json", env={"STAGE1_CACHE": str(tmp_path)})  # no answer is known already
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout).items() >= results.items()
    assert read(trained / "results.json") == results


def test_tasks_of_the_wheels_are_asked_through_it(trained: Path, stage1: Stage1) -> None:
    run = stage1("eval", "run", "--tasks", f"tiny-squad,{GENERATED['task']}", "--limit", "4", "--json")
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    tasks = {task["task"]: task for task in results["tasks"]}
    assert set(tasks) == {"tiny-squad", GENERATED["task"]}
    assert all(task["n"] == 4 for task in tasks.values())
    [f1] = [metric for metric in tasks["tiny-squad"]["metrics"] if metric["metric"] == "f1"]
    assert f1["text"] > 50
    assert f1["text_stderr"] > 0
    assert tasks["tiny-squad"]["sent"]["bits_per_token"] == 16 * 4
    for name in tasks:
        assert read(trained / "tasks" / name / "results.json")


def test_where_a_plugin_is_missing_the_run_says_what_to_install(trained: Path, invoke: Invoke) -> None:
    result = invoke("eval", str(trained), "--limit", "4")  # here, where the example is not installed
    assert result.code == 2
    assert "pip install stage1-additive" in result.err
    assert "Traceback" not in result.err


def test_strangers_plugins_go_together(stage1: Stage1, elsewhere: Path) -> None:
    first, adapter = GENERATED["compressor"], GENERATED["adapter"]
    parts = ("--compressor", first, "--compressor", "topk", "--adapter", adapter)
    sizes = settings_args([*SMALL, "train.steps=10", "compressor.dim=32", "topk.keep=8"])
    run = stage1("train", *parts, *sizes, "--no-eval", "--json", "--output", "both")
    assert run.returncode == 0, run.stderr
    saved = read(elsewhere / "both" / "bottleneck.json")
    owners = [plugin["distribution"] for plugin in (*saved["compressors"], saved["adapter"])]
    assert owners == [whose("compressor"), "stage1-topk", whose("adapter")]

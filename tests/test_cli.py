"""The command line as a user and as a script meet it, end to end."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import FEW, SMALL, Cli, CtrlC, Invoke, refused, settings_args
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.cli import completion
from stage1.runs.run import Run
from trainings import results_of

ROWS = ["text", "raw", "linear", "bottleneck", "mean", "no_context", "truncated", "shuffled"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A small run made by the command, with what it printed."""
    folder = tmp_path_factory.mktemp("work")
    command = [sys.executable, "-m", "stage1", "train", "--output", "run", *settings_args([*SMALL, *FEW])]
    env = {**os.environ, "STAGE1_CACHE": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout, done.stderr


# -- train --------------------------------------------------------------------------------------------


def test_the_run_folder_is_complete(trained: tuple[Path, str, str]) -> None:
    run, _, _ = trained
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    predictions = {f"predictions/{row}.jsonl" for row in ROWS}
    files = {"config.yaml", "manifest.json", "bottleneck.safetensors", "bottleneck.json", "metrics.jsonl"}
    assert names == files | predictions | {"results.json", "data.json", "timings.json"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["compressors"][0] == {"name": "pca", "ratio": 8.0, "dim": None}  # fully resolved
    manifest = json.loads((run / "manifest.json").read_text())
    plugin = manifest["plugins"]["compressors.0"]
    assert len(plugin.pop("source_sha256")) == 64
    assert plugin == {"name": "pca", "distribution": "stage1", "version": "0.1.0"}
    assert manifest["batches"] == "distinct tokens"
    assert manifest["attention"]["implementation"] == "sdpa"
    assert manifest["attention"]["backends"]["cudnn"] is False


def test_the_closing_words(trained: tuple[Path, str, str]) -> None:
    run, out, err = trained
    assert all(name in out for name in ROWS)
    assert "bits per token" in out
    assert "Verdict:" in out
    assert "stage1 eval run" in out
    assert "\x1b" not in out + err  # plain where there is no terminal
    assert results_of(run)["verdict"]["text"] in out


def test_json_alone_on_standard_output(invoke: Invoke) -> None:
    few = [*SMALL, "train.steps=2", "eval.limit=2"]
    done = invoke("train", "--json", "--quiet", "--output", "run", "--adapter", "linear", *settings_args(few))
    assert done.code == 0, done.err
    assert [row["row"] for row in json.loads(done.out)["rows"]] == ROWS
    assert done.err == ""
    unasked = invoke("train", "--no-eval", "--json", "--output", "two", *settings_args(few))
    assert json.loads(unasked.out)["run"] == "two"


def test_what_is_shown_is_a_configuration_of_the_schema(invoke: Invoke, tmp_path: Path) -> None:
    flags = ("--compressor", "random_projection", "--loss", "recon", "--loss", "cosine=0.1")
    shown = invoke("config", "show", *flags, "--set", "train.steps=5").out
    (tmp_path / "again.yaml").write_text(shown)
    assert invoke("config", "show", "again.yaml").out == shown
    schema = json.loads(invoke("config", "schema").out)
    assert {"compressor", "recipe", "protocol", *yaml.safe_load(shown)} == schema["properties"].keys()


# -- eval ---------------------------------------------------------------------------------------------


def test_eval_gives_the_same_numbers_from_the_folder_alone(
    spoilt: Path, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 'another machine': the folder was moved, the caches are empty."""
    before = (spoilt / "results.json").read_bytes()
    (spoilt / "results.json").unlink()
    monkeypatch.setenv("STAGE1_CACHE", str(tmp_path / "fresh"))
    done = invoke("eval", "run", "--json", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert (spoilt / "results.json").read_bytes() == before
    shown = json.loads(done.out)
    assert (shown.pop("run"), shown.pop("timings") != {}) == ("run", True)
    assert shown == results_of(spoilt)


def test_other_questions_leave_the_runs_results_alone(spoilt: Path, invoke: Invoke, tmp_path: Path) -> None:
    before = (spoilt / "results.json").read_bytes()
    few = ("--limit", "7", "--batch-size", "3")
    shown = json.loads(invoke("eval", "run", *few, "--json", "--output", "seven.json").printed)
    assert {row["n"] for row in shown["rows"]} == {7}
    seven = json.loads((tmp_path / "seven.json").read_text())
    assert seven.items() <= shown.items()
    assert (spoilt / "results.json").read_bytes() == before
    assert invoke("eval", "run", "--limit", "5", "--quiet").out.endswith(
        "Run: run\nResults: run/evaluations/tiny-squad-2\n"
    )
    invoke("eval", "run", "--limit", "7", "--quiet")  # replaces its own
    places = spoilt / "evaluations"
    kept = {place.name: Run.open(place) for place in places.iterdir()}
    assert kept.keys() == {"tiny-squad", "tiny-squad-2"}
    assert kept["tiny-squad"].read_results() == seven
    assert len(kept["tiny-squad-2"].read_answers("bottleneck")) == 5
    shutil.rmtree(places / "tiny-squad-2" / "predictions")
    (places / "tiny-squad-2" / "predictions").symlink_to(tmp_path)
    assert invoke("eval", "run", "--limit", "5").code == 2


def test_how_long_things_took_is_kept_apart(trained: tuple[Path, str, str]) -> None:
    run, out, _ = trained
    timings = Run(run).read_timings()
    for name in ("training_seconds", "encode_us_per_token", "decode_us_per_token"):
        assert timings[name] > 0
    assert "µs a token" in out
    size = results_of(run)["size"]
    saved = Bottleneck.from_pretrained(run).adapter.state_dict().values()
    assert size["adapter"]["parameters"] == sum(tensor.numel() for tensor in saved)
    assert size["adapter"]["bytes"] == 4 * size["adapter"]["parameters"]
    assert (size["code_dim"], size["ratio"]) == (32, 8)
    assert "Size   32 of 256 dimensions, 8×" in out


def test_fewer_rows_leave_the_runs_results_alone(spoilt: Path, invoke: Invoke) -> None:
    before = (spoilt / "results.json").read_bytes()
    shown = json.loads(invoke("eval", "run", "--rows", "truncated", "--json").printed)
    names = [row["row"] for row in shown["rows"]]
    assert names == ["text", "raw", "bottleneck", "no_context", "truncated"]
    assert (spoilt / "results.json").read_bytes() == before
    refused(invoke("eval", "run", "--rows", "shufled"), "Unknown row 'shufled'.\nDid you mean 'shuffled'?")


def test_what_kills_left_is_gone_after_the_next_success(spoilt: Path, invoke: Invoke) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    name = f".a.{int(dead.stdout)}.b.stage1-tmp"
    left = [spoilt / place / name for place in ("evaluations/x", "predictions", "")]
    left.append(spoilt / "state" / "state.safetensors")
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("half")
    assert invoke("eval", "run", "--limit", "2", "--quiet").code == 0
    assert not any(file.exists() for file in left)


def test_an_interrupted_evaluation_says_how_it_is_resumed(
    spoilt: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = CtrlC("Evaluating bottleneck", 1)
    monkeypatch.setattr("stage1.cli.display.make_progress", lambda quiet: stop)
    done = invoke("eval", "run", "--limit", "3")
    assert done.code == 130
    assert "Resume with: the same command" in done.err
    stop.nth = 1
    done = invoke("train", "--output", "new", *settings_args(), "--steps", "0")
    assert "Resume with: stage1 train --resume --output new" in done.err


def test_a_run_gives_another_one_its_configuration(spoilt: Path, invoke: Invoke) -> None:
    shown = yaml.safe_load(invoke("config", "show", "run", "--ratio", "4").out)
    own = Run(spoilt).config.model_dump(mode="json")
    own["compressors"][0]["ratio"], own["output"] = 4.0, None
    assert shown == own
    (spoilt / "config.yaml").write_text("seed: 3\n")  # damaged: it has no seal
    assert invoke("train", "run", "--output", "other").code == 2


def test_what_the_shell_completes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/one", "runs/two", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "runs" / "no-run").mkdir()
    assert completion.run("") == ["elsewhere", "runs/one", "runs/two"]
    assert completion.run("runs/t") == ["runs/two"]
    keys = dict(completion.setting("train.lr"))
    assert keys == {"train.lr=": "default: 0.003"}
    assert "compressor.ratio=" in dict(completion.setting("comp"))
    assert completion.one_of("free|vocab", "").autocompletion("v") == ["vocab"]
    assert [name for name, _ in completion.plugin("adapter")("re")] == ["residual"]


def test_the_help_of_lm_eval_says_what_a_run_is(invoke: Invoke) -> None:
    shown = invoke("lm-eval", "--help").printed
    for word in ("run=RUN", "row=bottleneck|text", "scope=prompt|all", "usage: lm-eval"):
        assert word in shown


# -- the rest -----------------------------------------------------------------------------------------


def test_an_unknown_plugin_gets_the_nearest(invoke: Invoke) -> None:
    refused(invoke("plugins", "show", "pac"), "'pca'")


def test_version_and_module_are_the_same_program(cli: Cli, invoke: Invoke) -> None:
    assert cli("--version").stdout == invoke("--version").out == "stage1 0.1.0\n"

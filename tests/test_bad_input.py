"""What users get wrong: one or two lines with the remedy, the right exit code, nothing half-written."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import Invoke, refused, settings_args
from qa_files import record, written
from stage1.files import json_lines
from stage1_models.tiny import MODEL_DIR


def untouched(folder: Path) -> bool:
    return not (folder / "runs").exists() and not (folder / "run").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--compressor", "pac"], ["'pac'", "Did you mean 'pca'", "random_projection"]),
        (["--adapter", "residul"], ["Did you mean 'residual'", "codebook"]),
        (["--loss", "cosin=0.1"], ["Did you mean 'cosine'"]),
        (["--set", "compressor.dimm=4"], ["compressor.dimm", "Did you mean 'dim'"]),
        (["--set", "compressor.dim=100000"], ["compressor.dim", "larger than the width", "1 to 256"]),
        (
            ["--compressor", "pca", "--compressor", "rvq", "--set", "rvq.groups=33"],
            ["rvq.groups: 33 groups are more than a vector's 32 values"],
        ),
        (["--set", "nonsense"], ["KEY=VALUE", "--set compressor.dim=64"]),
        (["--magnitude", "sant"], ["magnitude", "Did you mean 'sent'"]),
        (["--adapter", "identity"], ["adapter", "--compressor identity"]),
        (["--data", "tiny-squat"], ["Did you mean 'tiny-squad'"]),
        (["--data", "missing.json"], ["missing.json"]),
        (["--model", "tinny"], ["tiny"]),
        (["--model", "./nowhere"], ["./nowhere"]),
        (["--set", "data.max_prompt_tokens=100000"], ["context holds 1024 tokens", "max_prompt_tokens"]),
        (["nothing.yaml"], ["nothing.yaml", "No such file"]),
        (["--template", "\udcff{context}{question}"], ["prompt.template", "no text in UTF-8"]),
        (["--set", "losses.x\udcff.weight=1"], ["losses.x\\udcff", "no text in UTF-8"]),
        (["--no-such-flag"], ["--no-such-flag"]),
    ],
)
def test_wrong_options(invoke: Invoke, tmp_path: Path, args: list[str], words: list[str]) -> None:
    # Typer draws a usage line and a box around the errors of its own parser.
    refused(invoke("train", *args, *settings_args()), *words, lines=6 if args == ["--no-such-flag"] else 2)
    assert untouched(tmp_path)


def test_everything_wrong_is_said_at_once(invoke: Invoke) -> None:
    result = invoke("train", "--compressor", "pac", "--adapter", "mlb", "--loss", "reco")
    refused(result, "'pca'", "'mlp'", "'recon'", lines=3)


def test_a_question_longer_than_the_context(invoke: Invoke, tmp_path: Path) -> None:
    records = [record(number, question="why " * 2000) for number in range(12)]
    written(tmp_path, "long.jsonl", json_lines(records))
    refused(invoke("train", "--data", "long.jsonl"), "q", "long")
    assert untouched(tmp_path)


def test_the_hub_without_a_network(invoke: Invoke, finished: Path, tmp_path: Path) -> None:
    refused(invoke("train", "--model", "some-owner/some-model"), "some-owner/some-model", "folder")
    refused(invoke("train", "--data", "squad"), "squad")
    refused(invoke("push", str(finished), "some-owner/some-run"), "some-owner/some-run", "hf auth login")
    refused(invoke("push", str(finished), "no//name//"), "owner/name")
    assert untouched(tmp_path)


def test_cuda_asked_for_and_absent(invoke: Invoke, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    refused(invoke("train", "--device", "cuda"), "cuda", "cpu")
    assert untouched(tmp_path)


# -- folders ------------------------------------------------------------------------------------------


def test_output_that_cannot_be_made(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(invoke("train", "--output", "file/run", *settings_args()), "file", "--output")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_output_that_may_not_be_written(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    refused(invoke("train", "--output", "closed/run", *settings_args()), "closed", "--output")


def test_nothing_to_evaluate_or_resume(invoke: Invoke, tmp_path: Path) -> None:
    for command in ("eval", "diagnose"):
        refused(invoke(command, "nowhere"), "nowhere", "does not exist")
    refused(invoke("diagnose", "--compressor", "pac"), "Did you mean 'pca'")
    refused(invoke("train", "--resume"), "no unfinished run")
    refused(invoke("eval", "nowhere", "--batch-size", "many"), "'many'", "auto")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["eval", "diagnose"])
def test_an_untrained_run_is_neither_evaluated_nor_diagnosed(
    command: str, invoke: Invoke, spoilt: Path
) -> None:
    (spoilt / "bottleneck.json").unlink()
    refused(invoke(command, "run"), "run is not trained yet", "stage1 train --resume --output run")
    assert not (spoilt / "diagnosis.json").exists()


def test_a_run_of_another_model_is_refused(invoke: Invoke, spoilt: Path, tmp_path: Path) -> None:
    (spoilt / "results.json").unlink()
    shutil.copytree(MODEL_DIR, tmp_path / "other")
    tensors = load_file(tmp_path / "other" / "model.safetensors")
    name = next(k for k in tensors if k.endswith("embed_tokens.weight"))
    shifted = {**tensors, name: tensors[name] + 0.01}
    save_file(shifted, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    refused(invoke("eval", "run", "--model", "other"), "another embedding table")
    assert not (spoilt / "results.json").exists()


# -- scores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["--\x1b[31mx"], ["train", "--\x1b[31mx"], ["train", "a.yaml", "b\x1b[31m"]]
)
def test_words_that_a_script_typed_do_not_reach_the_terminal_raw(words: list[str], invoke: Invoke) -> None:
    done = invoke(*words)
    assert done.code == 2
    assert "\x1b[31m" not in done.err
    assert "\\x1b[31m" in done.err.replace("\\u001b", "\\x1b")

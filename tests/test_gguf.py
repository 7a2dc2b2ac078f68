"""Models in one file of llama.cpp's format, from the table alone to a whole run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Invoke, settings_args
from random_llama import VOCABULARY, WIDTH
from small_gguf import llama_with_bpe, write_gguf
from stage1.config import ModelConfig
from stage1.errors import UsageError
from stage1.llm import gguf_file
from stage1.llm.configuration import context_length
from stage1.llm.hashes import model_sha256
from stage1.llm.location import locate
from stage1.llm.model import load_llm
from stage1.llm.table import load_table
from stage1.llm.tokenizer import load_tokenizer
from stage1.progress import Progress

CPU = torch.device("cpu")
TEXT = "Context: Ada met\n\nBob, at 12:45.\nQuestion: whom? é<|end_of_text|>日本\nAnswer:"


def find(name: Path) -> Path:
    return locate(ModelConfig.model_validate({"name": str(name)}), weights="all", progress=Progress())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_with_bpe(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def file(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "model-Q8_0.gguf", llama)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
def test_the_table_alone_is_the_loaded_models_to_the_bit(kind: str, llama: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", llama, kind)
    table = load_table(file)
    assert table.shape == (VOCABULARY, WIDTH)
    model: Any = load_llm(file, dtype="float32", device=CPU)
    assert torch.equal(table, model.get_input_embeddings().weight)
    stored = load_table(llama).float()
    exact = kind in ("F32", "F16", "BF16")  # the folder's are bfloat16, small enough for float16, too
    torch.testing.assert_close(table, stored, rtol=0, atol=1e-3 if exact else 0.3)
    assert not torch.equal(table, stored) or exact


def test_no_other_weight_is_read_for_the_table(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf

    read: list[int] = []
    original = gguf.dequantize

    def dequantize(data: Any, kind: Any) -> Any:
        read.append(data.shape[0])
        return original(data, kind)

    monkeypatch.setattr(gguf, "dequantize", dequantize)
    load_table(file)
    assert read == [VOCABULARY]


def test_the_file_is_the_same_model_as_the_folder(llama: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", llama, "F32")
    ours, theirs = (load_llm(source, dtype="float32", device=CPU) for source in (file, llama))
    ids = torch.tensor([[0, 17, 400, 2900, 5]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)
    assert ours.generation_config.eos_token_id == theirs.generation_config.eos_token_id == 1
    assert not ours.training
    assert context_length(file) == context_length(llama) == 512


def test_the_tokenizer_is_the_folders(file: Path, llama: Path) -> None:
    ours, theirs = load_tokenizer(file), load_tokenizer(llama)
    options: Any = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
    assert ours(TEXT, **options).data == theirs(TEXT, **options).data
    assert ours(TEXT)["input_ids"][0] == ours.bos_token_id == 0
    assert (ours.eos_token, ours.pad_token) == (theirs.eos_token, theirs.pad_token)
    assert ours.padding_side == "left"
    assert str(ours.decode(ours(TEXT)["input_ids"])).endswith(TEXT)


def test_a_tokenizer_that_lies_beside_the_file_is_not_its_own(file: Path, tmp_path: Path) -> None:
    beside = Path(shutil.copy(file, tmp_path))
    before = load_tokenizer(file)(TEXT)["input_ids"]
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "a"}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 77}')
    (tmp_path / "config.json").write_text("{}")
    assert load_tokenizer(beside)(TEXT)["input_ids"] == before
    assert load_llm(beside, dtype="float32", device=CPU).generation_config.eos_token_id == 1
    assert model_sha256(beside) == model_sha256(file)


def test_loading_says_nothing(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_llm(file, dtype="auto", device=CPU)
    load_tokenizer(file)
    load_table(file)
    assert capfd.readouterr() == ("", "")


def test_a_whole_run_is_bound_to_its_file(file: Path, invoke: Invoke, tmp_path: Path) -> None:
    mine = Path(shutil.copy(file, tmp_path / "mine.gguf"))
    small = ("data.train=60", "data.selection=8", "train.steps=5", "eval.limit=6", "eval.max_new_tokens=3")
    done = invoke("train", "--model", str(mine), "--output", "run", *settings_args(small))
    assert done.code == 0, done.err
    assert json.loads(Path("run/results.json").read_text())["gate"]["difference"] == 0
    again = invoke("eval", "run")
    assert again.code == 0, again.err
    write_gguf(mine, llama_with_bpe(tmp_path / "other", seed=1))
    other = invoke("eval", "run")
    assert other.code == 2
    assert "embedding table" in other.err


# -- refusals ---------------------------------------------------------------------------------------------


def refusal(source: Path, step: Callable[[Path], Any] = find) -> str:
    with pytest.raises(UsageError) as refused:
        step(source)
    assert refused.value.remedy
    assert str(refused.value).count("\n") == 1
    return str(refused.value)


def test_what_is_no_gguf_file_is_refused(file: Path, llama: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.gguf"
    page.write_text("<html>Not found</html>")
    assert "page.gguf is not a GGUF file" in refusal(page)
    assert "nothing.gguf does not exist" in refusal(tmp_path / "nothing.gguf")
    assert "does not exist" in refusal(Path("models/nothing.gguf"))  # no Hub id
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:40_000])
    for step in (load_table, load_tokenizer, context_length):
        assert str(cut) in refusal(cut, step)
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(file, folder / "only.gguf")
    assert f"passed as the file itself: {folder / 'only.gguf'}" in refusal(folder)
    shutil.copy(llama / "config.json", folder)
    assert f"passed as the file itself: {folder / 'only.gguf'}" in refusal(folder)


def test_what_transformers_cannot_read_is_refused(llama: Path, tmp_path: Path) -> None:
    strange = write_gguf(tmp_path / "strange.gguf", llama, architecture="sparrow")
    assert "sparrow" in refusal(strange, load_table)
    assert "sparrow" in refusal(strange, load_tokenizer)
    headless = write_gguf(tmp_path / "headless.gguf", llama, without="token_embd.weight")
    assert "holds no input embeddings (token_embd.weight)" in refusal(headless, load_table)
    short = write_gguf(tmp_path / "short.gguf", llama, without="blk.1.ffn_up.weight")
    assert "lack 1 parameters, model.layers.1.mlp.up_proj.weight" in refusal(
        short, lambda source: load_llm(source, dtype="auto", device=CPU)
    )


def test_without_the_library_one_line_says_how_to_get_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "is_gguf_available", lambda: False)
    assert refusal(file).endswith("needs the package gguf.\npip install 'stage1[gguf]'")

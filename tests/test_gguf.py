"""Models in one file of llama.cpp's format, from the table alone to a whole run."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

from conftest import Invoke, located, refusal, settings_args
from random_llama import VOCABULARY, WIDTH, random_llama
from stage1.llm import gguf_file
from stage1.llm.configuration import context_length
from stage1.llm.hashes import model_sha256
from stage1.llm.model import load_llm
from stage1.llm.table import load_table
from stage1.llm.tokenizer import load_tokenizer

CPU = torch.device("cpu")
TEXT = "Context: Ada met\n\nBob, at 12:45.\nQuestion: whom? é<|end_of_text|>日本\nAnswer:"


SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|pad|>")


def llama_with_bpe(folder: Path, seed: int = 0) -> Path:
    """A random Llama in a folder, with a byte-level BPE tokenizer split as GPT-2's is.

    The embedded model's does not fit into a GGUF file, which cannot say that whole words need no merges.
    """
    random_llama(folder, seed=seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_gguf(
    file: Path, folder: Path, kind: str = "Q8_0", *, architecture: str = "llama", without: str = ""
) -> Path:
    """Write the Llama in `folder` to `file`, its embeddings as `kind`, everything else in float32."""
    config: Any = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text()), config)
    for name, values in _tensors(load_file(folder / "model.safetensors"), config):
        if name == without:
            continue
        if name == "token_embd.weight":
            stored = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quantize(values, stored), raw_dtype=stored)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer: Any, tokenizer: Any, config: Any) -> None:
    special = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    vocabulary = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    vocabulary |= tokenizer["model"]["vocab"]
    known = {id_: token for token, id_ in vocabulary.items()}
    ids = range(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([known.get(id_, f"[PAD{id_}]") for id_ in ids])
    kinds = [gguf.TokenType.CONTROL if id_ in special else gguf.TokenType.NORMAL for id_ in ids]
    writer.add_token_types(
        [kind if id_ in known else gguf.TokenType.UNUSED for id_, kind in enumerate(kinds)]
    )
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(True)


def _tensors(weights: dict[str, Tensor], config: Any) -> Iterator[tuple[str, Any]]:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for theirs, weight in weights.items():
        ours = str(names.get_name(theirs, [".weight"]))
        values = weight.float()
        if number := heads.get(ours.split(".")[-2]):
            # llama.cpp pairs neighbouring rotary dimensions, transformers the two halves
            rows = values.reshape(number, 2, -1, values.shape[1])
            values = rows.transpose(1, 2).reshape(values.shape)
        yield ours, values.numpy().copy()


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
    assert invoke("train", "--model", str(mine), "--output", "run", *settings_args(small)).printed
    assert json.loads(Path("run/results.json").read_text())["gate"]["difference"] == 0
    assert invoke("eval", "run").printed
    write_gguf(mine, llama_with_bpe(tmp_path / "other", seed=1))
    other = invoke("eval", "run")
    assert (other.code, "embedding table" in other.err) == (2, True)


# -- refusals ---------------------------------------------------------------------------------------------


def test_what_is_no_gguf_file_is_refused(file: Path, llama: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.gguf"
    page.write_text("<html>Not found</html>")
    assert "page.gguf is not a GGUF file" in refusal(located, page)
    assert "nothing.gguf does not exist" in refusal(located, tmp_path / "nothing.gguf")
    assert "does not exist" in refusal(located, Path("models/nothing.gguf"))  # no Hub id
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:40_000])
    for step in (load_table, load_tokenizer, context_length):
        assert str(cut) in refusal(step, cut)
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(file, folder / "only.gguf")
    assert f"passed as the file itself: {folder / 'only.gguf'}" in refusal(located, folder)
    shutil.copy(llama / "config.json", folder)
    assert f"passed as the file itself: {folder / 'only.gguf'}" in refusal(located, folder)


def test_what_transformers_cannot_read_is_refused(llama: Path, tmp_path: Path) -> None:
    strange = write_gguf(tmp_path / "strange.gguf", llama, architecture="sparrow")
    assert "sparrow" in refusal(load_table, strange)
    assert "sparrow" in refusal(load_tokenizer, strange)
    headless = write_gguf(tmp_path / "headless.gguf", llama, without="token_embd.weight")
    assert "holds no input embeddings (token_embd.weight)" in refusal(load_table, headless)
    short = write_gguf(tmp_path / "short.gguf", llama, without="blk.1.ffn_up.weight")
    assert "lack 1 parameters, model.layers.1.mlp.up_proj.weight" in refusal(
        lambda source: load_llm(source, dtype="auto", device=CPU), short
    )


def test_without_the_library_one_line_says_how_to_get_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "is_gguf_available", lambda: False)
    assert refusal(located, file).endswith("needs the package gguf.\npip install 'stage1[gguf]'")

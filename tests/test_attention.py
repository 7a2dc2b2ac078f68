"""Which attention backends the LLM uses, and what a program around stage1 keeps of its own settings."""

from typing import Any

import pytest
import torch

from stage1.llm.model import cuda, load_llm
from stage1.llm.states import FrozenLLM
from stage1.plugins.tensors import Embedded
from stage1_models.tiny import MODEL_DIR


@pytest.fixture(scope="module")
def llm() -> Any:
    return load_llm(MODEL_DIR, dtype="float32", device=torch.device("cpu"))


@pytest.fixture(params=[True, False])
def before(request: pytest.FixtureRequest) -> Any:
    """What the program around us had set."""
    own = cuda.cudnn_sdp_enabled()
    cuda.enable_cudnn_sdp(request.param)
    yield request.param
    cuda.enable_cudnn_sdp(own)


def test_every_way_to_call_the_llm_leaves_cudnn_attention_out(llm: Any, before: bool) -> None:
    seen: list[bool] = []  # the setting at the first attention of every forward pass
    layer = llm.get_decoder().layers[0].self_attn
    layer.register_forward_pre_hook(lambda *_: seen.append(cuda.cudnn_sdp_enabled()))
    ids = torch.tensor([[5, 6, 7]])
    llm(input_ids=ids)
    llm.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)
    embeds = llm.get_input_embeddings()(ids)
    FrozenLLM(llm)(Embedded(embeds, torch.ones(1, 3, dtype=torch.bool)))
    FrozenLLM(llm, layers=[1], last=False)(Embedded(embeds, torch.ones(1, 3, dtype=torch.bool)))
    assert len(seen) >= 5
    assert not any(seen)
    assert cuda.cudnn_sdp_enabled() == before


def test_the_setting_comes_back_when_a_pass_raises(llm: Any, before: bool) -> None:
    with pytest.raises(Exception, match=r"."):
        llm(input_ids=torch.tensor([[10**9]]))
    assert cuda.cudnn_sdp_enabled() == before

"""Models of other families: what the bottleneck sees, what embeddings mean, and whose logits losses read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, BertConfig, BertLMHeadModel

from conftest import Invoke, settings_args
from random_llama import VOCABULARY, WIDTH, written
from stage1.errors import UsageError
from stage1.llm.architecture import align_embeddings
from stage1.llm.hashes import model_sha256
from stage1.llm.model import load_llm
from stage1.llm.states import FrozenLLM
from stage1.llm.table import CAUSAL_LM, load_table
from stage1.plugins.tensors import Embedded

IDS = torch.tensor([[5, 600, 7, 2900, 11, 40]])
SCALED = {"gemma", "gemma2", "gemma3_text", "minicpm3"}
CHANGES_LOGITS = {"granite", "cohere", "gemma2", "minicpm3"}

SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
OLD_SIZES: dict[str, Any] = {"n_embd": WIDTH, "n_layer": 3, "n_head": 4, "n_positions": 512}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    # layers that scale what they look up
    "gemma": {**SIZES, "head_dim": 8},
    "gemma2": {**SIZES, "head_dim": 8, "final_logit_softcapping": 5.0},  # caps its logits, too
    "gemma3_text": {**SIZES, "head_dim": 8},
    "minicpm3": {
        **SIZES,
        "num_key_value_heads": 4,
        "head_dim": 8,
        **{"q_lora_rank": 16, "kv_lora_rank": 16, "v_head_dim": 8},
        **{"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "dim_model_base": 16, "scale_emb": 12},
    },
    # decoders that scale whatever comes in, and logits that are scaled on their way out
    "granite": {**SIZES, "embedding_multiplier": 12.0, "logits_scaling": 8.0},
    "cohere": {**SIZES, "logit_scale": 0.0625},
    # parts under other names
    "gpt2": OLD_SIZES,
    "bloom": OLD_SIZES,
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": WIDTH},
    "llama4_text": {**SIZES, "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48},
    "gpt_neox": SIZES,
    "qwen3": {**SIZES, "head_dim": 8},
}


def random_model(folder: Path, family: str) -> Path:
    """Write a small model of a `family` to `folder`; its weights are wide enough to tell tokens apart."""
    known = AutoConfig.for_model(family).to_dict()
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    spread = {"initializer_range": 0.3} if "initializer_range" in known else {}
    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, **FAMILIES[family], **special, **spread)
    return written(config, folder)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp(family), family)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_llm(folder, dtype="float32", device=torch.device("cpu"))


def test_the_table_is_what_the_embedding_layer_returns(family: str, folder: Path, model: Any) -> None:
    table = load_table(folder)
    layer = model.get_input_embeddings()
    assert torch.equal(table.float(), layer(torch.arange(len(table))))
    scaled = not torch.equal(table.float(), layer.weight)
    assert scaled == (family in SCALED)
    assert table.dtype == (torch.float32 if scaled else torch.bfloat16)


def test_given_embeddings_mean_what_their_ids_mean(model: Any) -> None:
    embeds = model.get_input_embeddings()(IDS)
    with torch.no_grad():
        text, raw = model(input_ids=IDS).logits, model(inputs_embeds=embeds).logits
    assert torch.equal(raw, text)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 2}
    answer = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **options)
    given = model.generate(inputs_embeds=embeds, attention_mask=torch.ones_like(IDS), **options)
    assert answer[0, IDS.shape[1] :].tolist() == given[0].tolist()


def test_losses_read_the_models_own_states_and_logits(family: str, model: Any) -> None:
    llm = FrozenLLM(model, layers=[1, 2])
    embeds = model.get_input_embeddings()(IDS).requires_grad_()
    states = llm(Embedded(embeds, torch.ones_like(IDS, dtype=torch.bool)))
    with torch.no_grad():
        own = model(input_ids=IDS, output_hidden_states=True)
    torch.testing.assert_close(llm.head(states.prompt[0]), own.logits[0], rtol=1e-5, atol=1e-5)
    plain = torch.allclose(model.get_output_embeddings()(states.prompt[0]), own.logits[0], rtol=0.1)
    assert plain == (family not in CHANGES_LOGITS)  # where the output layer alone is not the head
    for layer in (1, 2):
        torch.testing.assert_close(states.layers[layer], own.hidden_states[layer], rtol=1e-5, atol=1e-5)
    llm.head(states.prompt[0]).logsumexp(-1).sum().backward()
    assert embeds.grad is not None
    assert embeds.grad.abs().max() > 0
    llm.assert_frozen()
    llm.share(embeds.detach()[0, :3])
    behind = llm(Embedded(embeds[:, 3:], torch.ones_like(IDS[:, 3:], dtype=torch.bool)))
    torch.testing.assert_close(behind.prompt, states.prompt[:, 3:], rtol=1e-4, atol=1e-4)
    shorter = FrozenLLM(model, layers=[1], last=False)
    cut = shorter(Embedded(embeds, torch.ones_like(IDS, dtype=torch.bool)))
    assert cut.last is None
    assert torch.equal(cut.layers[1], states.layers[1])


def test_in_bfloat16_a_scaled_table_is_the_layers_up_to_rounding(tmp_path: Path) -> None:
    folder = random_model(tmp_path, "gemma3_text")
    model: Any = load_llm(folder, dtype="bfloat16", device=torch.device("cpu"))
    layer = model.get_input_embeddings()(torch.arange(2997)).float()
    torch.testing.assert_close(load_table(folder), layer, rtol=2**-7, atol=0)


def random_in_memory(family: str, tmp_path: Path) -> Any:
    return CAUSAL_LM.from_pretrained(random_model(tmp_path, family), dtype=torch.float32).eval()


def test_an_unknown_change_on_the_way_to_the_first_layer_is_refused(tmp_path: Path) -> None:
    model = random_in_memory("llama", tmp_path)
    model.get_input_embeddings().register_forward_hook(lambda *_: None)
    align_embeddings(model)  # nothing to do

    def shift(_module: Any, args: Any, kwargs: Any) -> Any:
        if kwargs.get("inputs_embeds") is not None:
            kwargs["inputs_embeds"] = kwargs["inputs_embeds"] + 1
        return args, kwargs

    model.model.register_forward_pre_hook(shift, with_kwargs=True)
    with pytest.raises(UsageError, match="LlamaForCausalLM changes what it looks up"):
        align_embeddings(model)


MULTIPLYING = """
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

class Config(LlamaConfig):
    model_type = "multiplying"
    scale_emb: float = 1.0

class Decoder(LlamaModel):
    def forward(self, input_ids=None, inputs_embeds=None, **options):
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids) * self.config.scale_emb
        return super().forward(inputs_embeds=inputs_embeds, **options)

class LM(LlamaForCausalLM):
    config_class = Config
    def __init__(self, config):
        super().__init__(config)
        self.model = Decoder(config)
        self.post_init()
"""


def test_a_factor_that_given_embeddings_miss_is_made_up_for(tmp_path: Path) -> None:
    """As in MiniCPM's own code: what is looked up is multiplied, what is given is not."""
    folder = random_model(tmp_path / "model", "llama")
    before = model_sha256(folder, True)
    (folder / "own.py").write_text(MULTIPLYING)
    assert (
        model_sha256(folder, True) != before == model_sha256(folder)
    )  # code that is not run decides nothing
    config = json.loads((folder / "config.json").read_text())
    mapped = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.LM"}
    ours = {**config, "model_type": "multiplying", "auto_map": mapped, "scale_emb": 12.3}
    (folder / "config.json").write_text(json.dumps(ours))
    with pytest.raises(UsageError, match="trust_remote_code=true"):
        load_llm(folder, dtype="float32", device=torch.device("cpu"))
    model: Any = load_llm(folder, dtype="float32", device=torch.device("cpu"), trust_remote_code=True)
    table = load_table(folder, trust_remote_code=True)
    assert torch.equal(table.float(), model.get_input_embeddings().weight)  # the hook makes up for the factor
    embeds = model.get_input_embeddings()(IDS)
    with torch.no_grad():
        text, raw = model(input_ids=IDS).logits, model(inputs_embeds=embeds).logits
        attends = torch.ones_like(IDS, dtype=torch.bool)
        states = FrozenLLM(model)(Embedded(embeds, attends)).prompt[0]
    assert torch.equal(raw, text)
    torch.testing.assert_close(FrozenLLM(model).head(states), text[0], rtol=1e-5, atol=1e-5)


def test_a_model_that_cannot_continue_embeddings_is_refused_by_name(tmp_path: Path) -> None:
    model = random_in_memory("llama", tmp_path)
    model.prepare_inputs_for_generation = lambda input_ids, **_: {"input_ids": input_ids}
    with pytest.raises(UsageError, match="LlamaForCausalLM cannot continue given embeddings"):
        align_embeddings(model)


def test_a_model_that_is_no_row_of_layers_is_refused_by_name() -> None:
    sizes: Any = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    model: Any = BertLMHeadModel(BertConfig(vocab_size=50, is_decoder=True, **sizes))
    with pytest.raises(UsageError, match="BertLMHeadModel is not built of"):
        FrozenLLM(model)


@pytest.mark.parametrize("name", ["gemma2", "bloom", "granite"])
def test_a_whole_run_with_a_loss_that_reads_the_llm(name: str, invoke: Invoke, tmp_path: Path) -> None:
    folder = random_model(tmp_path / name, name)
    few = ("train.steps=3", "train.batch_prompts=2", "train.check_questions=2", "train.check_every=3")
    small = ("data.train=20", "data.selection=8", "eval.limit=4", "eval.max_new_tokens=3")
    command = ("train", "--model", str(folder), "--loss", "kl", "--loss", "recon", "--output", "run")
    done = invoke(*command, *settings_args((*few, *small)))
    if name == "bloom":  # it sets no limit to a prompt's length
        assert done.code == 2
        assert "config.json does not say how long a prompt may be.\nSay it: --set data.max_prompt" in done.err
        done = invoke(*command, *settings_args((*few, *small, "data.max_prompt_tokens=200")))
    assert done.printed
    results = json.loads(Path("run/results.json").read_text())
    assert results["gate"]["difference"] == 0

"""Small random models of many families as folders, with the embedded model's tokenizer."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from random_llama import VOCABULARY, WIDTH
from stage1.llm.table import CAUSAL_LM
from stage1_models.tiny import MODEL_DIR

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
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = CAUSAL_LM.from_config(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / name, folder / name)
    return folder

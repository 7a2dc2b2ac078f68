"""A random Llama as a GGUF file as llama.cpp writes it, with a tokenizer that fits into one.

The embedded model's tokenizer does not: a GGUF file cannot say that whole words need no merges.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

from random_llama import random_llama

SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|pad|>")
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def llama_with_bpe(folder: Path, seed: int = 0) -> Path:
    """A random Llama in a folder, with a byte-level BPE tokenizer split as GPT-2's is."""
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


def _tensors(weights: dict[str, Tensor], config: Any) -> list[tuple[str, np.ndarray[Any, Any]]]:
    named = [("token_embd.weight", weights["model.embed_tokens.weight"])]
    named.append(("output_norm.weight", weights["model.norm.weight"]))
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for layer in range(config["num_hidden_layers"]):
        for theirs, ours in NAMES.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            if ours in heads:  # llama.cpp pairs neighbouring rotary dimensions, transformers the two halves
                rows = weight.reshape(heads[ours], 2, -1, weight.shape[1])
                weight = rows.transpose(1, 2).reshape(weight.shape)
            named.append((f"blk.{layer}.{ours}.weight", weight))
    return [(name, weight.float().numpy().copy()) for name, weight in named]

"""Small random models as folders, with the embedded model's tokenizer."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from stage1.llm.table import CAUSAL_LM
from stage1_models.tiny import MODEL_DIR

VOCABULARY = 2997
WIDTH = 32


def random_llama(folder: Path, *, tied: bool = True, shard: str = "1GB", seed: int = 0) -> Path:
    """Write a two-layer Llama to `folder`; wide initial weights make its answers differ from each other."""
    config: Any = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.4,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return written(config, folder, seed, shard)


def written(config: Any, folder: Path, seed: int = 0, shard: str = "1GB") -> Path:
    """Write a model as `config` says to `folder`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = CAUSAL_LM.from_config(config)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=shard)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / name, folder / name)
    return folder


def edit(folder: Path, name: str = "config.json", **changes: Any) -> Path:
    """Change settings in a file of a model's folder."""
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return file


@contextmanager
def calls_of(model: Any) -> Iterator[list[dict[str, Any]]]:
    """What the decoder is called with, call by call."""
    calls: list[dict[str, Any]] = []
    hook = model.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: calls.append(dict(kwargs)), with_kwargs=True
    )
    yield calls
    hook.remove()

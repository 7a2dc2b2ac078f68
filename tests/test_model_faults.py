"""What is wrong with a model folder is said of the file and the field that are wrong, in one line."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import Invoke, refusal
from random_llama import edit, random_llama
from stage1.bottleneck.statistics import count_tokens
from stage1.data.prompts import Prompt
from stage1.errors import UsageError
from stage1.llm.model import check_llm, load_llm
from stage1.llm.table import load_table
from stage1.llm.tokenizer import load_tokenizer


def load(folder: Path) -> Any:
    return load_llm(folder, dtype="auto", device=torch.device("cpu"))


CONFIGS: list[tuple[dict[str, Any], str, str]] = [
    ({"hidden_size": 32.0}, "hidden_size", "expected int, got float"),
    ({"num_hidden_layers": "2"}, "num_hidden_layers", "expected int, got str"),
    ({"vocab_size": None}, "vocab_size", "expected int, got NoneType"),
    ({"num_attention_heads": 5}, "hidden_size", "not a multiple of the number of attention heads"),
    ({"num_attention_heads": 0}, "", "cannot be used: integer modulo by zero"),
    ({"dtype": "float99"}, "dtype", "float99"),
    ({"hidden_act": "wow"}, "hidden_act", "'wow' is unknown"),
    ({"rope_parameters": {"rope_type": "wiggly"}}, "rope_parameters.rope_type", "'wiggly' is unknown"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.rope_type", "factor"),
    ({"attn_implementation": "flash_attention_2"}, "attn_implementation", "FlashAttention2"),
    ({"attn_implementation": "sideways"}, "attn_implementation", "sideways"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config", "gptq weights"),
    ({"quantization_config": {"quant_method": "zip"}}, "quantization_config", "zip weights"),
]


def test_no_tokenizer_is_blamed_for_the_configuration(broken: Path) -> None:
    file = edit(broken, hidden_size=256.0)
    said = f"{file}: hidden_size: Field 'hidden_size' expected int, got float (value: 256.0)\n"
    assert refusal(load_tokenizer, broken).startswith(said)


@pytest.mark.parametrize(("changes", "field", "reason"), CONFIGS)
def test_a_configuration_that_transformers_rejects_is_blamed_itself(
    changes: dict[str, Any], field: str, reason: str, broken: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = edit(broken, **changes)
    for step in (load_table, check_llm, load):
        problem = refusal(step, broken)
        assert problem.startswith(f"{file}: {field}: " if field else f"{file} ")
        assert reason in problem
    with suppress(UsageError):  # it needs no more of the configuration than that it can be read
        load_tokenizer(broken)
    assert capfd.readouterr() == ("", "")


SETTINGS = [
    ("[1]", "holds no JSON object"),
    ("{", "holds no JSON object"),
    ('{"eos_token_id": "x"}', "eos_token_id: 'x' is neither a token id"),
    ('{"eos_token_id": [1, 2.5]}', "eos_token_id: [1, 2.5] is neither a token id"),
    ('{"bos_token_id": {}}', "bos_token_id: {} is neither a token id"),
]


@pytest.mark.parametrize(("content", "reason"), SETTINGS)
def test_malformed_generation_settings_are_blamed(content: str, reason: str, broken: Path) -> None:
    file = broken / "generation_config.json"
    file.write_text(content)
    problem = refusal(load, broken)
    assert problem.startswith(str(file))
    assert reason in problem
    assert refusal(check_llm, broken) == problem


def test_training_alone_refuses_what_an_evaluation_would(
    broken: Path, invoke: Invoke, tmp_path: Path
) -> None:
    (broken / "generation_config.json").write_text("[1]")
    done = invoke("train", "--model", str(broken), "--no-eval", "--output", "run", "--steps", "0")
    assert (done.code, "generation_config.json holds no JSON object" in done.err) == (2, True)
    assert not (tmp_path / "run").exists()
    random_llama(broken / "split", shard="100KB")
    shards = sorted((broken / "split").glob("*.safetensors"))
    shards[-1].unlink()
    with pytest.raises(UsageError, match="incomplete"):
        check_llm(broken / "split")
    check_llm(broken / "split", whole=False)


def test_training_alone_compares_the_weights_with_the_configuration(broken: Path) -> None:
    weights = load_file(broken / "model.safetensors")
    for changed, said in (
        ({"model.norm.other": weights["model.norm.weight"]}, "lack 1 parameters, model.norm.weight"),
        ({"model.norm.weight": weights["model.norm.weight"][:-1].clone()}, "do not have the sizes"),
    ):
        kept = {name: value for name, value in weights.items() if name != "model.norm.weight"}
        save_file({**kept, **changed}, broken / "model.safetensors", metadata={"format": "pt"})
        assert said in refusal(check_llm, broken)
        assert refusal(load, broken) == refusal(check_llm, broken)


def test_a_tokenizer_that_loads_and_does_not_work_is_refused(broken: Path) -> None:
    edit(broken, "tokenizer_config.json", model_max_length={"x": 1})
    assert "cannot be used" in refusal(load_tokenizer, broken)


def test_a_tokenizer_prints_nothing_past_us(broken: Path, capfd: pytest.CaptureFixture[str]) -> None:
    token = {"content": "<odd>", "special": True, "a\x1b[2Jb": True}
    edit(broken, "tokenizer_config.json", added_tokens_decoder={"0": token})
    load_tokenizer(broken)
    assert capfd.readouterr() == ("", "")


def test_json_that_is_nested_too_deeply(broken: Path) -> None:
    file = broken / "generation_config.json"
    file.write_text("[" * 3_000)
    assert "holds no JSON object" in refusal(load, broken)
    (broken / "config.json").write_text("[" * 3_000)
    assert "cannot be used" in refusal(load_table, broken)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_no_numbers_are_refused_for_what_they_are(value: float, broken: Path) -> None:
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"][[7, 2000], 3] = value
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    problem = refusal(load_table, broken)
    assert "model.embed_tokens.weight" in problem
    assert "NaN or infinite in 2 rows, that of id 7 first" in problem


# -- tokens without a row ---------------------------------------------------------------------------------


@pytest.mark.parametrize("crosses", [True, False])
def test_a_token_without_a_row_is_refused_wherever_it_stands(crosses: bool) -> None:
    prompt = Prompt("q", "", [0, 2997, 5], [False, crosses, True], 0)
    with pytest.raises(UsageError, match=r"yields id 2997, but the embedding table has 2997 rows\."):
        count_tokens([prompt], torch.zeros(2997, 4))


# -- the terminal -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "wanted"), [(None, "40"), ("info", "20")])
def test_notices_of_transformers_do_not_reach_the_terminal(own: str | None, wanted: str) -> None:
    """Unless the user asks for them."""
    program = """
import sys
from stage1.cli import main
sys.argv = ["stage1", "--version"]
try:
    main()
except SystemExit:
    from transformers.utils import logging
    print(logging.get_verbosity())
"""
    environment = {key: value for key, value in os.environ.items() if key != "TRANSFORMERS_VERBOSITY"}
    if own:
        environment["TRANSFORMERS_VERBOSITY"] = own
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split()[-1] == wanted, done.stderr

"""The gate: embeddings fed in wrongly are found, and a noisy model is not taken for a fault."""

from typing import Any

import pytest
import torch

from conftest import with_llm
from stage1.data.datasets import spread
from stage1.data.prompts import Prompt
from stage1.evaluation.answers import Answering
from stage1.evaluation.gate import PROMPTS, Gate, check
from stage1.llm.model import load_llm
from stage1.session import Session


@pytest.fixture(scope="module")
def prompts(gibberish: Session) -> list[Prompt]:
    return gibberish.prompts(spread(gibberish.data.test, 24))


@pytest.fixture
def fresh(gibberish: Session) -> Any:
    """A model of this test's own, to hang hooks on."""
    return load_llm(gibberish.model.folder, dtype="auto", device=gibberish.device)


def noisy(llm: Any, scale: float, seed: int = 0) -> Any:
    """`llm` whose logits differ anew at every call."""
    random = torch.Generator().manual_seed(seed)
    llm.lm_head.register_forward_hook(
        lambda _module, _args, out: out + scale * torch.randn(out.shape, generator=random)
    )
    return llm


def scaled(llm: Any) -> Any:
    """`llm` whose embedding layer, asked from outside, gives 1 % too much."""
    layer = llm.get_input_embeddings()
    llm.get_input_embeddings = lambda: lambda ids: 1.01 * layer(ids)
    return llm


def gate_of(session: Session, llm: Any, prompts: list[Prompt]) -> Gate:
    return check(Answering(with_llm(session, llm), None), prompts)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sound_model(dtype: str, gibberish: Session, prompts: list[Prompt]) -> None:
    llm = load_llm(gibberish.model.folder, dtype=dtype, device=gibberish.device)
    gate = gate_of(gibberish, llm, prompts)
    assert gate == Gate(prompts=PROMPTS, difference=0, noise=0, changed=0)
    assert gate.repeats
    assert not gate.broken
    assert gate_of(gibberish, llm, prompts[:3]).prompts == 3


def test_embeddings_fed_in_wrongly(gibberish: Session, fresh: Any, prompts: list[Prompt]) -> None:
    gate = gate_of(gibberish, scaled(fresh), prompts)
    assert gate.broken
    assert gate.difference > 0
    assert (gate.noise, gate.changed) == (0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_noise_is_no_fault(seed: int, gibberish: Session, fresh: Any, prompts: list[Prompt]) -> None:
    gate = gate_of(gibberish, noisy(fresh, 1.0, seed), prompts)
    assert gate.noise > 0
    assert 0.5 < gate.difference / gate.noise < 2  # as often above as below
    assert gate.changed > 0
    assert not gate.broken
    assert not gate.repeats


def test_a_fault_beyond_the_noise_is_found(gibberish: Session, fresh: Any, prompts: list[Prompt]) -> None:
    gate = gate_of(gibberish, noisy(scaled(fresh), 1e-4), prompts)
    assert gate.noise > 0
    assert gate.broken


def test_a_model_that_says_nothing_finite(gibberish: Session, fresh: Any, prompts: list[Prompt]) -> None:
    """Always is one thing, from embeddings alone another."""
    always = fresh.lm_head.register_forward_hook(lambda _module, _args, out: out * float("nan"))
    assert gate_of(gibberish, fresh, prompts)[1:] == (0, 0, 0)
    always.remove()
    layer = fresh.get_input_embeddings()
    fresh.get_input_embeddings = lambda: lambda ids: layer(ids) * float("nan")
    gate = gate_of(gibberish, fresh, prompts)
    assert gate.broken
    assert torch.tensor(gate.difference, dtype=torch.float64).isfinite()  # JSON knows no infinity

"""Losses over the vocabulary in chunks against the same in one piece."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from stage1.llm.chunked import POSITIONS, token_cross_entropy, token_kl

N, WIDTH, VOCABULARY = 2 * POSITIONS + 37, 16, 501


def head(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(5)
    return nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False).to(dtype)


def rows(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(N, WIDTH, generator=generator)).to(dtype).requires_grad_()


TARGETS = torch.randint(0, VOCABULARY, (N,), generator=torch.Generator().manual_seed(3))
UPSTREAM = torch.rand(N, generator=torch.Generator().manual_seed(4))  # positions need not count alike


def gradient(values: Tensor, states: Tensor) -> Tensor:
    (found,) = torch.autograd.grad((values * UPSTREAM).sum(), states)
    return found


def test_cross_entropy_equals_the_naive_form() -> None:
    states, layer = rows(0), head()
    ours = token_cross_entropy(states, TARGETS, layer)
    naive = cross_entropy(layer(states), TARGETS, reduction="none")
    torch.testing.assert_close(ours, naive, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient(ours, states), gradient(naive, states), rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_equals_the_naive_form_and_leaves_the_teacher_alone(temperature: float) -> None:
    student, teacher, layer = rows(0), rows(1), head()
    ours = token_kl(student, teacher, layer, temperature)
    guess, goal = (log_softmax(layer(states) / temperature, -1) for states in (student, teacher))
    naive = kl_div(guess, goal.detach(), log_target=True, reduction="none").sum(-1)
    assert float(naive.detach().mean()) > 0.1
    torch.testing.assert_close(ours, naive, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient(ours, student), gradient(naive, student), rtol=0, atol=1e-5)
    [into_teacher] = torch.autograd.grad(ours.sum(), [teacher], allow_unused=True)
    assert into_teacher is None


def test_logits_are_never_held_whole() -> None:
    sizes, layer = [], head()

    def counting(states: Tensor) -> Tensor:
        sizes.append(len(states))
        logits: Tensor = layer(states)
        return logits

    states = rows(0)
    gradient(token_cross_entropy(states, TARGETS, counting), states)
    assert max(sizes) <= POSITIONS
    assert sum(sizes) == N  # every position's logits are computed once, the backward pass needs none


def test_a_bfloat16_head_gives_float32_losses_and_bfloat16_gradients() -> None:
    states, other = rows(0, torch.bfloat16), rows(1, torch.bfloat16)
    layer, exact = head(torch.bfloat16), head(torch.bfloat16).float()
    pairs = (
        (token_cross_entropy(states, TARGETS, layer), token_cross_entropy(states.float(), TARGETS, exact)),
        (token_kl(states, other, layer), token_kl(states.float(), other.float(), exact)),
    )
    for ours, wanted in pairs:
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, wanted, rtol=0.02, atol=0.05)
        mine, theirs = gradient(ours, states), gradient(wanted, states)
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine.float(), theirs.float(), rtol=0.05, atol=0.02)


def test_without_gradient_nothing_is_kept_for_one() -> None:
    states = rows(0)
    wanted = token_cross_entropy(states, TARGETS, head())
    with torch.no_grad():
        assert torch.equal(token_cross_entropy(states, TARGETS, head()), wanted)
    assert token_cross_entropy(states.detach(), TARGETS, head()).grad_fn is None

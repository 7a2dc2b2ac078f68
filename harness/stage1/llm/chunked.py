"""Losses over a vocabulary, a few positions at a time.

The logits of 2,048 positions over 128,256 tokens take a gigabyte in float32, their softmax and its gradient
as much again. Each position's loss depends on its own state alone, so both the losses and their gradients
with respect to the states are computed chunk by chunk, and only those gradients are kept.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

POSITIONS = 128
"""Positions at a time: 66 MB of float32 logits at a vocabulary of 128,256."""

Head = Callable[[Tensor], Tensor]
"""Last states [N, D] to logits [N, V]; its weights are frozen."""


def token_cross_entropy(states: Tensor, targets: Tensor, head: Head) -> Tensor:
    """[N] nats: −log p(target) at each position.

    Args:
        states: [N, D] last states; gradients flow into them.
        targets: [N] token ids.
        head: turns states into logits.
    """

    def losses(part: Tensor, goal: Tensor) -> Tensor:
        return cross_entropy(head(part).float(), goal, reduction="none")

    return _in_chunks(losses, states, targets)


def token_kl(student: Tensor, teacher: Tensor, head: Head, temperature: float = 1.0) -> Tensor:
    """[N] nats: KL(teacher ‖ student) between the tempered next-token distributions at each position.

    Args:
        student: [N, D] last states; gradients flow into them.
        teacher: [N, D] last states of the other prompt; none flow into these.
        head: turns states into logits.
        temperature: both logits are divided by it.
    """

    def losses(ours: Tensor, theirs: Tensor) -> Tensor:
        with torch.no_grad():
            goal = log_softmax(head(theirs).float() / temperature, dim=-1)
        guess = log_softmax(head(ours).float() / temperature, dim=-1)
        return (goal.exp() * (goal - guess)).sum(-1)

    return _in_chunks(losses, student, teacher)


def _in_chunks(losses: Callable[[Tensor, Tensor], Tensor], states: Tensor, others: Tensor) -> Tensor:
    values: Tensor = _Chunked.apply(losses, states, others.detach())  # type: ignore[no-untyped-call]
    return values


class _Chunked(torch.autograd.Function):
    """Per-position losses whose gradient is found together with their value."""

    @staticmethod
    def forward(
        ctx: Any, losses: Callable[[Tensor, Tensor], Tensor], states: Tensor, others: Tensor
    ) -> Tensor:
        wanted = ctx.needs_input_grad[1]
        values: list[Tensor] = []
        gradients: list[Tensor] = []
        for part, other in zip(torch.split(states, POSITIONS), torch.split(others, POSITIONS), strict=True):
            with torch.set_grad_enabled(wanted):
                own = part.detach().requires_grad_(wanted)
                found = losses(own, other)
                if wanted:
                    gradients += torch.autograd.grad(found.sum(), own)
            values.append(found.detach())
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return None, (gradient * upstream[0][:, None]).to(gradient.dtype), None

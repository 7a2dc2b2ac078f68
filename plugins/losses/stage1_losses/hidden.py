"""Hidden states at chosen layers."""

from typing import Annotated

import torch
from pydantic import Field, field_validator
from torch import Tensor

from stage1 import ComponentConfig, Loss, LossInputs, hookimpl


class HiddenConfig(ComponentConfig):
    """Options of `hidden`."""

    layers: list[Annotated[int, Field(ge=1)]] = Field(
        [2], min_length=1, description="Layers whose outputs are compared; 1 is the first."
    )

    @field_validator("layers")
    @classmethod
    def _distinct(cls, layers: list[int]) -> list[int]:
        if len(set(layers)) < len(layers):
            raise ValueError("a layer is named twice")
        return layers


class Hidden(Loss):
    """Normalised squared error of the LLM's hidden states on the reconstructed prompt. Unitless.

    Per position ‖s − t‖² ÷ σ², with s the state on the reconstruction, t on the original, and σ² the mean of
    ‖t − t̄‖² over its prompt, whose mean state is t̄; averaged over positions that are neither padding nor
    special, and over layers. 0 is perfect and 1 is as far off as the prompt's mean state. Behind a compressor
    that changes the length, the positions that did not cross count, and the last one that did. The LLM is
    run to the deepest of the layers only, unless another loss reads its last states.
    """

    name = "hidden"
    Config = HiddenConfig
    needs_llm = True
    requires_same_length = False

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self.config.layers)

    def forward(self, inputs: LossInputs) -> Tensor:
        llm = inputs.llm
        prompt = llm.compared.nonzero()[:, 0]  # [N] which one a position is of
        errors = []
        for layer in self.layers:
            wanted = llm.teacher.layers[layer].float()  # [B, L, D]
            ours = llm.counterparts(llm.student.layers[layer]).float()  # [N, D]
            error = (ours - wanted[llm.compared]).square().sum(-1)  # [N]
            errors.append((error / _spread(wanted, llm.ordinary)[prompt]).mean())
        return torch.stack(errors).mean()

    def denominator(self, inputs: LossInputs) -> Tensor:
        return inputs.llm.compared.sum()


def _spread(states: Tensor, counted: Tensor) -> Tensor:
    """[B] mean squared distance of a prompt's `counted` [B, L] states [B, L, D] from their mean."""
    here, number = counted[..., None], counted.sum(1).clamp(min=1)
    mean = states.where(here, 0).sum(1, keepdim=True) / number[:, None, None]
    spread = (states - mean).where(here, 0).square().sum((1, 2)) / number
    return spread.clamp(min=1e-12)  # a prompt of one token has none


@hookimpl
def stage1_losses() -> type[Loss]:
    return Hidden

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
    """Normalised squared error between the LLM's hidden states on original and rebuilt prompt. Unitless.

    Per layer Σ‖s − t‖² ÷ Σ‖t − t̄‖² over the positions that are neither padding nor special, with s the state
    on the reconstruction, t on the original and t̄ the mean of the latter; then the mean over layers. 0 is
    perfect and 1 is as far off as the mean state. The LLM is run to the deepest of the layers only, unless
    another loss reads its last states.
    """

    name = "hidden"
    Config = HiddenConfig
    needs_llm = True
    tokenwise = False

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self.config.layers)

    def forward(self, inputs: LossInputs) -> Tensor:
        llm = inputs.llm
        length = llm.ordinary.shape[1]  # answers may follow the prompt
        errors = []
        for layer in self.layers:
            both = (llm.student.layers[layer], llm.teacher.layers[layer])
            ours, wanted = (states[:, :length][llm.ordinary].float() for states in both)  # [N, D]
            spread = (wanted - wanted.mean(0)).square().sum()
            errors.append((ours - wanted).square().sum() / spread.clamp(min=1e-12))
        return torch.stack(errors).mean()


@hookimpl
def stage1_losses() -> type[Loss]:
    return Hidden

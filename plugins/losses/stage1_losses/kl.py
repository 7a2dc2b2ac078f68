"""Distillation of the next-token distributions over the prompt."""

from pydantic import Field
from torch import Tensor

from stage1 import ComponentConfig, Loss, LossInputs, hookimpl, token_kl


class KLConfig(ComponentConfig):
    """Options of `kl`."""

    temperature: float = Field(1.0, gt=0, description="Both distributions' logits are divided by it.")


class KL(Loss):
    """KL(teacher ‖ student) between next-token distributions, averaged over the prompt. Nats per token, ≥ 0.

    The teacher is the LLM on the original prompt, the student the same LLM on the reconstruction. Positions
    that are neither padding nor special count; behind a compressor that changes the length, those that did
    not cross and the last one that did. The divergence is multiplied by temperature², which keeps its
    gradient's size when the temperature changes (Hinton, Vinyals and Dean, 2015).
    """

    name = "kl"
    Config = KLConfig
    needs_llm = True
    requires_same_length = False

    def forward(self, inputs: LossInputs) -> Tensor:
        llm, temperature = inputs.llm, self.config.temperature
        student = llm.counterparts(llm.student.prompt)  # [N, D]
        teacher = llm.teacher.prompt[llm.compared]  # [N, D]
        divergence = token_kl(student, teacher, llm.head, temperature).mean()
        return divergence * float(temperature**2)

    def denominator(self, inputs: LossInputs) -> Tensor:
        return inputs.llm.compared.sum()


@hookimpl
def stage1_losses() -> type[Loss]:
    return KL

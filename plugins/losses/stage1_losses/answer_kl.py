"""Distillation of the answer's first tokens."""

from pydantic import Field
from torch import Tensor

from stage1 import ComponentConfig, Loss, LossInputs, hookimpl, token_kl


class AnswerKLConfig(ComponentConfig):
    """Options of `answer_kl`."""

    tokens: int = Field(4, gt=0, description="Tokens of each answer, from its first, that are distilled.")
    temperature: float = Field(1.0, gt=0, description="Both distributions' logits are divided by it.")


class AnswerKL(Loss):
    """TEACHER-FORCED: KL(teacher ‖ student) over the gold answer's first tokens. Nats per token, ≥ 0.

    The teacher is the LLM on the original prompt, the student the same LLM on the reconstruction; the gold
    answer's own embeddings follow both, which no evaluation has. Shorter answers count with the tokens they
    have. The divergence is multiplied by temperature² (Hinton, Vinyals and Dean, 2015).
    """

    name = "answer_kl"
    Config = AnswerKLConfig
    teacher_forced = True
    requires_same_length = False

    def forward(self, inputs: LossInputs) -> Tensor:
        llm, temperature = inputs.llm, self.config.temperature
        counted = self._counted(inputs)
        both = (llm.student, llm.teacher)
        student, teacher = (states.answering[:, : counted.shape[1]][counted] for states in both)  # [N, D]
        divergence = token_kl(student, teacher, llm.head, temperature).mean()
        return divergence * float(temperature**2)

    def denominator(self, inputs: LossInputs) -> Tensor:
        return self._counted(inputs).sum()

    def _counted(self, inputs: LossInputs) -> Tensor:
        """[B, K] bool: the tokens of the answers that are distilled."""
        return inputs.llm.answers.mask[:, : self.config.tokens]


@hookimpl
def stage1_losses() -> type[Loss]:
    return AnswerKL

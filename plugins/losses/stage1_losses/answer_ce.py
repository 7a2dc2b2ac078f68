"""Cross-entropy on the gold answer."""

from torch import Tensor

from stage1 import Loss, LossInputs, hookimpl, token_cross_entropy


class AnswerCE(Loss):
    """TEACHER-FORCED: cross-entropy of the gold answer after the reconstructed prompt. Nats per token.

    The answer's own embeddings, raw, follow the prompt in the LLM's input, which no evaluation has; runs
    trained so are marked wherever they are shown. The newline that ends the answer is one of its tokens.
    """

    name = "answer_ce"
    teacher_forced = True
    requires_same_length = False

    def forward(self, inputs: LossInputs) -> Tensor:
        llm = inputs.llm
        answers = llm.answers
        states = llm.student.answering[answers.mask]  # [N, D]
        return token_cross_entropy(states, answers.ids[answers.mask], llm.head).mean()

    def denominator(self, inputs: LossInputs) -> Tensor:
        return inputs.llm.answers.mask.sum()


@hookimpl
def stage1_losses() -> type[Loss]:
    return AnswerCE

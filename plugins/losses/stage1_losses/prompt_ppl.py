"""Perplexity of the prompt, read from its reconstruction."""

from torch import Tensor

from stage1 import Loss, LossInputs, hookimpl, token_cross_entropy


class PromptPPL(Loss):
    """Cross-entropy of the prompt's own next tokens, on the reconstructed prompt. Nats per token.

    The logarithm of the perplexity: 0 is certainty, ln |V| is guessing. No answer and no original prompt is
    looked at. Position i predicts token i + 1; the pair counts where position i is not padding and token
    i + 1 is neither padding nor special.
    """

    name = "prompt_ppl"
    needs_llm = True

    def forward(self, inputs: LossInputs) -> Tensor:
        counted = self._counted(inputs)
        states = inputs.llm.student.prompt[:, :-1][counted]  # [N, D]
        return token_cross_entropy(states, inputs.ids[:, 1:][counted], inputs.llm.head).mean()

    def denominator(self, inputs: LossInputs) -> Tensor:
        return self._counted(inputs).sum()

    def _counted(self, inputs: LossInputs) -> Tensor:
        """[B, L - 1] bool: positions whose prediction counts."""
        return inputs.llm.reconstructed.attention[:, :-1] & inputs.llm.ordinary[:, 1:]


@hookimpl
def stage1_losses() -> type[Loss]:
    return PromptPPL

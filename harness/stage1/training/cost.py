"""What F1 checks cost beside the steps of a training, counted instead of timed: the same on every machine."""

from transformers import PreTrainedModel

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.config import RunConfig

SHARE = 0.1
"""Of the steps' arithmetic that all F1 checks together may take."""

FEWEST, MOST = 8, 100
"""Questions of a check: the F1 of fewer says nothing, that of more hardly says more."""

ALONE = 4
"""Tokens that are read side by side in the time of one that is generated; those come one after another."""


def affordable_questions(
    config: RunConfig,
    bottleneck: Bottleneck,
    model: PreTrainedModel,
    *,
    reads_llm: bool,
    tokens: float,
    length: float,
) -> int:
    """How many questions each F1 check may ask within `SHARE`, at most `MOST`; 0 where it is under `FEWEST`.

    In units of two operations: a token's pass forward takes as many as there are parameters, its step three
    times that. The LLM's step is student, its gradient and teacher: three passes, too.

    Args:
        config: steps, checks, the longest answer.
        bottleneck: what is trained.
        model: the LLM that is asked.
        reads_llm: a loss reads it too.
        tokens: that go through the bottleneck in a step.
        length: of a prompt, on average.
    """
    train = config.train
    own = sum(p.numel() for p in bottleneck.parameters())
    table = sum(p.numel() for p in model.get_input_embeddings().parameters())
    llm = sum(p.numel() for p in model.parameters()) - table
    step = 3 * tokens * (own + llm * reads_llm)
    question = llm * (length + ALONE * config.eval.max_new_tokens)
    checks = train.steps // train.check_every + 2  # the start and the closed form at the end
    number = int(SHARE * train.steps * step / (checks * question))
    return min(number, MOST) if number >= FEWEST else 0

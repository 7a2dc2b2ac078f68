"""Controls at equal cost: what the same bits buy without a bottleneck, and what a wrong code is worth.

A bottleneck that does not beat `truncated`, or does not lose to `shuffled`, has shown nothing.
"""

import math
from collections.abc import Sequence

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.data.prompts import Prompt
from stage1.data.records import Question
from stage1.errors import UsageError
from stage1.evaluation.rate import code_bits
from stage1.plugins.tensors import TokenStats
from stage1.session import Session


def truncated(
    bottleneck: Bottleneck,
    session: Session,
    questions: Sequence[Question],
    prompts: Sequence[Prompt],
    stats: TokenStats,
) -> list[Prompt]:
    """The prompts with their contexts cut to as many token ids as the bits of their codes pay for.

    A token id costs log2 V bits. A code that costs less than the question alone leaves no context.

    Args:
        bottleneck: whose codes they are.
        session: model and configuration.
        questions: what is asked.
        prompts: the questions with their contexts.
        stats: the tokens that cross in `prompts`.
    """
    id_bits, builder = math.log2(len(session.table)), session.builder()
    shortened = []
    bits = code_bits(bottleneck, prompts, stats, session.table)
    for question, prompt, cost in zip(questions, prompts, bits, strict=True):
        affordable = len(prompt.ids) - sum(prompt.cross) + int(cost / id_bits)
        if affordable >= len(prompt.ids):
            shortened.append(prompt)
            continue
        try:
            [cut] = builder.build([question], session.crossing, max_tokens=affordable)
        except UsageError:  # not even the question
            [cut] = session.prompts([question], with_context=False)
        shortened.append(cut)
    return shortened


def elsewhere(questions: Sequence[Question]) -> list[int]:
    """For each question the number of another one, about another passage where there is one."""
    n = len(questions)
    found = []
    for number, question in enumerate(questions):
        others = ((number + step) % n for step in range(n // 2, n // 2 + n))
        found.append(next((i for i in others if questions[i].context != question.context), number))
    return found


def shuffled(questions: Sequence[Question]) -> list[Question]:
    """Each question about another one's context."""
    others = elsewhere(questions)
    return [q._replace(context=questions[i].context) for q, i in zip(questions, others, strict=True)]

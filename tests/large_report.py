"""A report of as many questions as SQuAD's development set has, made without a model."""

import random
from collections.abc import Sequence

from stage1.data.records import Question
from stage1.evaluation.summary import graded
from stage1.reports.html.questions import Asked, Reading
from stage1.reports.html.run import Facts, page
from stage1.runs.answers import Answer

QUESTIONS = 10_570
"""Of SQuAD's development set, about `PASSAGES` passages."""

PASSAGES = 2_067


def large_page(facts: Facts, names: Sequence[str]) -> str:
    """The report of `facts`, with invented questions, their answers in the rows `names`, and long prompts."""
    generator = random.Random(0)
    words = [f"w{number}" for number in range(20_000)]
    rows: dict[str, list[Answer]] = {name: [] for name in names}
    prompts: list[list[int]] = []
    context: list[int] = []
    for number in range(QUESTIONS):
        if number * PASSAGES // QUESTIONS != (number - 1) * PASSAGES // QUESTIONS:
            context = generator.choices(range(len(words)), k=160)
        own = generator.choices(range(len(words)), k=20)
        prompts.append(context + own)
        first, gold = words[context[0]], f"{words[context[0]]} {words[context[1]]}"
        question = Question(f"id-{number}", "", first, f"What is {' '.join(words[n] for n in own)}?", (gold,))
        right, wrong = (graded(question, said, cut=number % 50 == 0) for said in (gold, f"{first} {number}"))
        for row in rows.values():
            row.append(right if generator.random() < 0.6 else wrong)
    pairs = [(f" {word}", f" {words[-n]}" if n % 10 == 1 else None) for n, word in enumerate(words)]
    reading = Reading(pairs, prompts, [int(n % 100 == 0) for n in range(QUESTIONS)], 24.0)
    return page(facts, Asked(rows, reading))

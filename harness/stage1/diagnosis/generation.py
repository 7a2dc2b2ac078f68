"""How healthy the generated answers are: diverse or stuck, right in content but not in form."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

from stage1.data.records import Question
from stage1.diagnosis.case import Asked, Case
from stage1.evaluation.squad import normalize_answer

EXAMPLES = 8
RIGHT = 50.0
"""F1 from which an answer that contains a gold answer counts as answered in the right form."""


def measure(case: Case) -> dict[str, Any]:
    """The bottleneck's answers beside the text row's, and how often the first token is right."""
    rows = zip(case.questions, case.text.answers, case.ours.answers, case.ours.f1.tolist(), strict=True)
    return {
        "ours": health(case.ours, case.questions),
        "text": health(case.text, case.questions),
        "first_token": _first_token(case),
        "examples": [
            {
                "question": question.question,
                "gold": question.gold,
                "text": text.strip(),
                "ours": ours.strip(),
                "f1": f1,
            }
            for question, text, ours, f1 in list(rows)[:EXAMPLES]
        ],
    }


def health(asked: Asked, questions: Sequence[Question]) -> dict[str, Any]:
    """Diversity (distinct n-grams ÷ n-grams: Li et al., 2016), repetition and content of the answers.

    `points_in_form`: by how much F1 would rise if answers that contain a gold one said no more than that.
    """
    answers = [answer.strip() for answer in asked.answers]
    words = [answer.split() for answer in answers]
    n = len(answers)
    common, times = Counter(answers).most_common(1)[0]
    runs = [max((len(list(run)) for _, run in groupby(row)), default=0) for row in words]
    longest = max(range(n), key=runs.__getitem__)
    contains = [_contains(answer, q.answers) for answer, q in zip(answers, questions, strict=True)]
    wrong = [there and f1 < RIGHT for there, f1 in zip(contains, asked.f1.tolist(), strict=True)]
    return {
        "distinct_answers": len(set(answers)) / n,
        "distinct_1": _distinct([word for row in words for word in row]),
        "distinct_2": _distinct([pair for row in words for pair in pairwise(row)]),
        "empty": answers.count("") / n,
        "most_common": {"answer": common, "share": times / n},
        "longest_repeat": {"words": runs[longest], "answer": answers[longest]},
        "contains_gold": sum(contains) / n,
        "contains_gold_but_wrong": sum(wrong) / n,
        "points_in_form": sum(100 - f1 for f1, bad in zip(asked.f1.tolist(), wrong, strict=True) if bad) / n,
        "mean_words": sum(map(len, words)) / n,
    }


def _distinct(grams: Sequence[Any]) -> float:
    return len(set(grams)) / len(grams) if grams else 0.0


def _contains(answer: str, gold: Sequence[str]) -> bool:
    """An answer holds the words of a gold answer; letters within a word ("19" in "1984") do not count."""
    said = f" {normalize_answer(answer)} "
    return any(f" {words} " in said for words in map(normalize_answer, gold) if words)


def _first_token(case: Case) -> dict[str, float] | None:
    """Shares of the questions: right through the bottleneck, right with the original, both alike."""
    if case.bottleneck.compressor.changes_length:
        return None
    embed = case.view(case.bottleneck.reconstruct)
    views = (("bottleneck", embed), ("raw", case.raw))
    ours, text = (case.next_tokens(name, view).final.tolist() for name, view in views)
    gold = [ids[0] for ids in case.session.answer_ids(case.questions, case.prompts)]

    def share(one: list[int], other: list[int]) -> float:
        return sum(a == b for a, b in zip(one, other, strict=True)) / len(gold)

    return {"ours": share(ours, gold), "text": share(text, gold), "agreement": share(ours, text)}

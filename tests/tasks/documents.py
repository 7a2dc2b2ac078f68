"""The documents of the small tasks: questions of tiny-squad, from its test split.

The tasks are of every type that lm-eval has; the embedded model can do them, so that a loss shows.
"""

from typing import Any

from datasets import Dataset

from stage1.config import PromptConfig
from stage1_datasets.tiny_squad.generator import tiny_squad

Documents = dict[str, Dataset]

COUNT = 200


def questions(**_metadata: Any) -> Documents:
    """The first questions with their prompt and answer, and wrong answers to choose from."""
    records = list(tiny_squad("test", COUNT // 4))[:COUNT]
    by_passage: dict[str, list[str]] = {}
    for record in records:
        by_passage.setdefault(record["context"], []).append(record["answers"]["text"][0])
    rows = []
    for number, record in enumerate(records):
        answer = record["answers"]["text"][0]
        others = [other for other in dict.fromkeys(by_passage[record["context"]]) if other != answer]
        choices = others[:3]
        choices.insert(number % (len(choices) + 1), answer)
        prompt = PromptConfig().template.format(context=record["context"], question=record["question"])
        rows.append({"prompt": prompt, "answer": answer, "choices": choices, "gold": choices.index(answer)})
    return {"test": Dataset.from_list(rows), "train": Dataset.from_list(rows[::-1])}


def passages(**_metadata: Any) -> Documents:
    """The passages as plain text, two of them a document: longer than a question's prompt."""
    texts = list(dict.fromkeys(record["context"] for record in tiny_squad("test", COUNT)))
    pairs = zip(texts[:100:2], texts[1:100:2], strict=True)
    return {"test": Dataset.from_list([{"page": f"{left} {right}"} for left, right in pairs])}

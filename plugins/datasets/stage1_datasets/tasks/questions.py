"""What the YAML files beside this one call. lm-eval imports it by path: no relative import works here."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from lm_eval.api.samplers import ContextSampler

from stage1.config import DataConfig, PromptConfig
from stage1.data.datasets import load_qa
from stage1.data.records import Question
from stage1.evaluation.squad import exact_match, f1

TEMPLATE = PromptConfig().template

POOL = 1_000
"""Questions that few-shot examples are drawn from."""

Doc = Mapping[str, Any]
Splits = dict[str, Any]


def squad(data: str = "squad", examples: str = "squad", **others: Any) -> Splits:
    """SQuAD v1.1, from the Hub unless lm-eval's metadata name files.

    Args:
        data: a file whose questions are all asked; `squad`: the Hub's development split.
        examples: another file to draw few-shot examples from, out of 80 % of its passages; `squad`: the Hub's
            training split.
        others: the rest of lm-eval's metadata, the model's arguments among them.

    Raises:
        UsageError: there is no such file, or it cannot be used.
    """
    return _splits(data, examples)


def tiny_squad(**others: Any) -> Splits:
    """Our generated data; `others` is all of lm-eval's metadata."""
    return _splits("tiny-squad", "tiny-squad")


def _splits(data: str, examples: str) -> Splits:
    questions = load_qa(DataConfig(name=data), everything_is_test=True).test
    return {"test": Dataset.from_list(_docs(questions)), "train": [{"examples": examples}]}


def _docs(questions: Sequence[Question]) -> list[Doc]:
    """Questions as lm-eval takes them. The task's delimiter puts the space between prompt and target."""
    return [
        {
            **q._asdict(),
            "prompt": TEMPLATE.format(context=q.context, question=q.question),
            "target": q.gold,
        }
        for q in questions
    ]


class Examples(ContextSampler):  # type: ignore[misc]
    """Few-shot examples from questions whose passages are not asked about.

    lm-eval reads the few-shot split of every task, zero-shot ones too. The split therefore holds only where
    the examples are, and they are read (or downloaded) when the first is wanted.
    """

    df: Sequence[Doc]
    _loaded: bool

    def fewshot_docs(self) -> Sequence[Doc]:
        """The questions to draw from."""
        if not self._loaded:
            config = DataConfig(name=self.df[0]["examples"], train=POOL, selection=1)
            self.df = _docs(load_qa(config).train)
            self._loaded = True
        return self.df


def score(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """F1 and exact match of SQuAD's own script, 0 to 100."""
    answer, gold = results[0], doc["answers"]
    return {"f1": 100 * f1(answer, gold), "exact_match": 100 * exact_match(answer, gold)}

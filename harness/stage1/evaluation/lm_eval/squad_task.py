"""SQuAD as an lm-eval task over prepared prompts, and the answers to it."""

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task

from stage1.data.prompts import Prompt
from stage1.data.records import Question
from stage1.evaluation.lm_eval.model import Stage1LM
from stage1.evaluation.lm_eval.quiet import quiet_lm_eval
from stage1.evaluation.squad import exact_match, f1


class QATask(Task):  # type: ignore[misc]
    """Questions with prepared prompts, scored as SQuAD v1.1: an answer ends with its line."""

    VERSION = 1
    OUTPUT_TYPE = "generate_until"

    def __init__(
        self, name: str, questions: Sequence[Question], prompts: Sequence[Prompt], max_new_tokens: int
    ) -> None:
        with quiet_lm_eval():  # it warns that the generation settings are not in a file
            super().__init__()
        self.set_config("task", name)
        self._docs = [
            {**question._asdict(), "prompt": prompt.text}
            for question, prompt in zip(questions, prompts, strict=True)
        ]
        self._options = {"until": ["\n"], "max_gen_toks": max_new_tokens, "do_sample": False}

    def download(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the questions are given."""

    def has_training_docs(self) -> bool:  # noqa: D102
        return False

    def has_validation_docs(self) -> bool:  # noqa: D102
        return False

    def has_test_docs(self) -> bool:  # noqa: D102
        return True

    def test_docs(self) -> list[dict[str, Any]]:
        """The questions with their prompts."""
        return self._docs

    def doc_to_text(self, doc: Mapping[str, Any]) -> str:
        """The prompt."""
        return str(doc["prompt"])

    def doc_to_target(self, doc: Mapping[str, Any]) -> str:
        """The gold continuation begins with the space."""
        return f" {doc['answers'][0]}"

    def build_all_requests(self, **kwargs: Any) -> None:
        """One request for each question, whose prompt is whole: no description, no examples in front."""
        self._instances = [
            self.construct_requests(doc, self.doc_to_text(doc), metadata=(self.task_name, number, 1))
            for number, doc in enumerate(self._docs)
        ]

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> Instance:
        """Greedy generation up to the end of the line."""
        return Instance("generate_until", doc, (ctx, dict(self._options)), 0, kwargs["metadata"])

    def process_results(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
        """Exact match and F1 of one answer, 0 to 100."""
        answer, gold = results[0], doc["answers"]
        return {"exact_match": 100 * exact_match(answer, gold), "f1": 100 * f1(answer, gold)}

    def aggregation(self) -> dict[str, Any]:
        """The mean over the questions."""
        return {"exact_match": mean, "f1": mean}

    def higher_is_better(self) -> dict[str, bool]:  # noqa: D102
        return {"exact_match": True, "f1": True}


def generate_answers(lm: Stage1LM, task: QATask) -> list[str]:
    """The task's answers as generated, in the order of its questions."""
    from lm_eval.evaluator import evaluate  # a second more, which training should not wait for

    with quiet_lm_eval():
        evaluated = evaluate(lm, {"tasks": {task.task_name: task}}, bootstrap_iters=0, log_samples=True)
    samples = sorted(evaluated["samples"][task.task_name], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"][0] for sample in samples]

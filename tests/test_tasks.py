"""squad and tiny-squad as lm-eval tasks: under stock lm-eval, with stage1's prompts, data and scores."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from conftest import SQUAD, build_prompts
from stage1.config import DataConfig
from stage1.data.datasets import load_qa
from stage1.errors import UsageError
from stage1.evaluation import squad
from stage1.evaluation.answers import Answering
from stage1.evaluation.conditions import Condition
from stage1.session import Session
from stage1_datasets.tasks import stage1_tasks

FOLDER = stage1_tasks()
N = 24
PART = SQUAD / "dev-v1.1-part.json"


def manager(**metadata: Any) -> TaskManager:
    return TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=metadata)


def load(name: str, **metadata: Any) -> ConfigurableTask:
    return manager(**metadata).load([name])["tasks"][name]


@pytest.fixture(scope="module")
def stock(session: Session) -> HFLM:
    """The embedded model as lm-eval runs any other."""
    return HFLM(pretrained=session.model.llm, tokenizer=session.tokenizer, batch_size=8)


@pytest.fixture(scope="module")
def evaluated(stock: HFLM) -> Mapping[str, Any]:
    """Stock lm-eval on the first questions of tiny-squad."""
    results = simple_evaluate(
        stock, tasks=["tiny-squad"], task_manager=manager(run="runs/x", dtype="auto"), limit=N
    )
    assert isinstance(results, dict)
    return results


def test_stock_lm_eval_gives_f1_and_exact_match_with_standard_errors(evaluated: Mapping[str, Any]) -> None:
    found = evaluated["results"]["tiny-squad"]
    samples = evaluated["samples"]["tiny-squad"]
    assert len(samples) == N
    for metric, of_one in (("f1", squad.f1), ("exact_match", squad.exact_match)):
        values = torch.tensor(
            [100 * of_one(s["filtered_resps"][0], s["doc"]["answers"]) for s in samples], dtype=torch.float64
        )
        assert found[f"{metric},none"] == pytest.approx(float(values.mean()))
        assert found[f"{metric}_stderr,none"] == pytest.approx(float(values.std() / N**0.5))
    assert 0 < found["f1_stderr,none"] < 20 < found["f1,none"]
    assert evaluated["higher_is_better"]["tiny-squad"] == {"f1": True, "exact_match": True}
    assert evaluated["versions"]["tiny-squad"] == 1
    assert evaluated["n-shot"]["tiny-squad"] == 0


def test_what_lm_eval_writes_of_a_task_is_the_same_every_time(evaluated: Mapping[str, Any]) -> None:
    """It writes functions below the first level as their place in memory."""
    config = evaluated["configs"]["tiny-squad"]
    assert (config["doc_to_text"], config["doc_to_target"]) == ("prompt", "target")
    assert not re.search("at 0x[0-9a-f]+", json.dumps(config, default=str))


def test_the_answers_are_those_of_the_text_row(evaluated: Mapping[str, Any], session: Session) -> None:
    questions = session.data.test[:N]
    asked = Condition("text", session.prompts(questions), None, None)
    answers = [answer.text for answer in Answering(session, None).answers(asked)]

    samples = sorted(evaluated["samples"]["tiny-squad"], key=lambda sample: sample["doc_id"])
    assert [s["doc"]["id"] for s in samples] == [q.id for q in questions]
    assert [s["filtered_resps"][0] for s in samples] == answers
    score = squad.score(questions, {q.id: text for q, text in zip(questions, answers, strict=True)})
    assert evaluated["results"]["tiny-squad"]["f1,none"] == pytest.approx(score.f1)
    assert evaluated["results"]["tiny-squad"]["exact_match,none"] == pytest.approx(score.exact_match)


def test_a_request_is_the_prompt_of_the_evaluation(session: Session) -> None:
    task = load("tiny-squad")
    questions = load_qa(DataConfig()).test
    docs = list(task.test_docs())
    assert [doc["id"] for doc in docs] == [q.id for q in questions]
    prompts = build_prompts(questions[:9], session.tokenizer, max_tokens=10_000)
    for doc, prompt in zip(docs, prompts, strict=False):
        assert task.fewshot_context(doc, num_fewshot=0) == prompt.text
    request = task.construct_requests(docs[0], "ctx", metadata=("tiny-squad", 0, 1))
    assert request.arguments == ("ctx", {"until": ["\n"], "max_gen_toks": 32, "do_sample": False})


def test_examples_come_from_training_questions_and_end_in_an_empty_line() -> None:
    task = load("tiny-squad")
    task.set_fewshot_seed(1234)
    doc = task.test_docs()[0]
    *examples, last = task.fewshot_context(doc, num_fewshot=2).split("\n\n")
    train = load_qa(DataConfig(train=1000)).train
    answered = {f"Context: {q.context}\nQuestion: {q.question}\nAnswer: {q.answers[0]}" for q in train}
    assert len(set(examples)) == 2
    assert answered.issuperset(examples)
    assert last == f"Context: {doc['context']}\nQuestion: {doc['question']}\nAnswer:"


def test_a_chat_gets_the_answer_without_the_space() -> None:
    task = load("tiny-squad")
    told: list[dict[str, str]] = []

    def template(messages: list[dict[str, str]], **_: Any) -> str:
        told.extend(messages)
        return ""

    task.fewshot_context(
        task.test_docs()[0],
        num_fewshot=1,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        chat_template=template,
    )
    assert [m["role"] for m in told] == ["user", "assistant", "user"]
    assert told[1]["content"] == told[1]["content"].strip() != ""


def test_few_shot_runs_under_stock_lm_eval(stock: HFLM) -> None:
    results = simple_evaluate(
        stock, tasks=["tiny-squad"], task_manager=manager(), num_fewshot=1, limit=2, bootstrap_iters=10
    )
    assert isinstance(results, dict)
    assert results["n-shot"]["tiny-squad"] == 1
    assert all(s["arguments"][0][0].count("Question:") == 2 for s in results["samples"]["tiny-squad"])


@pytest.mark.skipif(not PART.is_file(), reason="SQuAD is not here")
def test_squad_reads_files_that_the_metadata_name() -> None:
    task = load("squad", data=str(PART), examples=str(PART), pretrained="x")
    questions = load_qa(DataConfig(name=str(PART)), everything_is_test=True).test
    docs = list(task.test_docs())
    assert [doc["id"] for doc in docs] == [q.id for q in questions]
    assert [tuple(doc["answers"]) for doc in docs] == [q.answers for q in questions]
    gold = docs[0]["answers"][-1]
    assert task.process_results(docs[0], [f" {gold}"]) == {"f1": 100.0, "exact_match": 100.0}
    assert task.process_results(docs[0], ["zzz"]) == {"f1": 0.0, "exact_match": 0.0}
    task.set_fewshot_seed(1)
    assert task.fewshot_context(docs[0], num_fewshot=1).count("\nAnswer:") == 2


def test_zero_shot_reads_no_training_questions(tmp_path: Path) -> None:
    record = {"id": "q", "context": "It rains.", "question": "What?", "answers": ["It"]}
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps(record), encoding="utf-8")
    task = load("squad", data=str(file), examples=str(tmp_path / "absent.jsonl"))
    [doc] = task.test_docs()
    assert task.fewshot_context(doc, num_fewshot=0) == "Context: It rains.\nQuestion: What?\nAnswer:"
    with pytest.raises(UsageError, match=r"absent\.jsonl"):
        task.fewshot_context(doc, num_fewshot=1)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no file"):
        load("squad", data=str(tmp_path / "dev.json"))

"""The controls: what the same bits buy as text, and another question's code."""

import math

import pytest

from conftest import fitted, with_settings
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import count_tokens
from stage1.data.datasets import spread
from stage1.evaluation.conditions import elsewhere, truncated
from stage1.evaluation.evaluate import evaluate
from stage1.evaluation.rate import code_bits
from stage1.session import Session


@pytest.fixture(scope="module")
def one_number(session: Session) -> Bottleneck:
    """16 bits a token, where a token id costs 11.5."""
    return fitted(session, "compressor.dim=1", "adapter=linear")


def test_bits_are_counted_prompt_by_prompt(session: Session, one_number: Bottleneck) -> None:
    prompts = session.prompts(session.data.test[:9])
    bits = code_bits(one_number, prompts, count_tokens(prompts, session.table), session.table)
    assert bits == [16.0 * sum(prompt.cross) for prompt in prompts]


def test_a_code_that_costs_more_than_ids_leaves_the_prompts_whole(
    session: Session, one_number: Bottleneck
) -> None:
    questions = session.data.test[:9]
    prompts = session.prompts(questions)
    stats = count_tokens(prompts, session.table)
    assert truncated(one_number, session, questions, prompts, stats) == prompts


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_a_cheaper_one_pays_for_so_many_ids(
    session: Session, one_number: Bottleneck, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = session.data.test[:9]
    prompts, bare = session.prompts(questions), session.prompts(questions, with_context=False)
    id_bits = math.log2(len(session.table))
    cost = [share * id_bits * sum(prompt.cross) for prompt in prompts]
    monkeypatch.setattr("stage1.evaluation.conditions.code_bits", lambda *_: cost)
    stats = count_tokens(prompts, session.table)
    cut = truncated(one_number, session, questions, prompts, stats)
    for short, whole, alone, bits in zip(cut, prompts, bare, cost, strict=True):
        room = 1 + int(bits / id_bits)  # BOS crosses raw and is paid for anyway
        assert len(short.ids) <= max(room, len(alone.ids))
        assert short.text.endswith(whole.text[whole.text.index("\nQuestion:") :].lstrip("\n"))
        assert len(short.ids) > room - 3 or short == alone  # as much of the context as fits


def test_another_question_is_about_another_passage(session: Session) -> None:
    questions = session.data.test[:40]
    others = elsewhere(questions)
    assert all(questions[i].context != q.context for q, i in zip(questions, others, strict=True))
    assert elsewhere(questions[:1]) == [0]


@pytest.mark.parametrize("scope", ["prompt", "context"])
def test_both_are_rows_of_an_evaluation(scope: str, session: Session) -> None:
    bottleneck = fitted(session, "compressor=identity", "adapter=identity")
    evaluation = evaluate(bottleneck, with_settings(session, f"scope={scope}", "eval.limit=12"), cache=None)
    rows = {row["row"]: row for row in evaluation.results["rows"]}
    assert rows["truncated"]["f1"] == rows["text"]["f1"] > 50  # 4,096 bits a token pay for all of it
    assert rows["shuffled"]["f1"] < rows["text"]["f1"] / 2
    ours, given = (list(evaluation.predictions[row].values()) for row in ("bottleneck", "shuffled"))
    answers_to_others = [ours[i] for i in elsewhere(spread(session.data.test, 12))]
    assert (given == answers_to_others) == (scope == "prompt")  # else its own question about another passage
    assert "controls: truncated" in evaluation.results["verdict"]["text"]

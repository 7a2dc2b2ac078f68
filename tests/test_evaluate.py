"""The evaluation as a whole, on the embedded model: rows, results, verdict, and the cache of baselines."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import CtrlC, Notes, fitted, opened, with_llm, with_settings
from pairs import pairs
from random_llama import WIDTH, calls_of
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.data.datasets import spread
from stage1.evaluation.answers import Answering
from stage1.evaluation.conditions import NEEDED, Condition
from stage1.evaluation.evaluate import Evaluation, evaluate
from stage1.evaluation.squad import score
from stage1.llm.model import load_llm
from stage1.progress import Progress
from stage1.session import Session

ROWS = ["text", "raw", "linear", "bottleneck", "mean", "no_context", "truncated", "shuffled"]


@pytest.fixture(scope="module")
def session() -> Session:
    return opened("eval.limit=30")


@pytest.fixture(scope="module")
def gibberish(gibberish: Session) -> Session:
    return with_settings(gibberish, "eval.limit=8")


def run(bottleneck: Bottleneck, session: Session, cache: Path | None = None, notes: Any = None) -> Evaluation:
    return evaluate(bottleneck, replace(session, progress=notes or Progress()), cache=cache)


@pytest.fixture(scope="module")
def squeezed(session: Session) -> Evaluation:
    return run(fitted(session, "compressor.ratio=4", "adapter=linear"), session)


@pytest.fixture(scope="module")
def untouched(session: Session) -> Evaluation:
    return run(fitted(session, "compressor=identity", "adapter=identity"), session)


def by_row(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    return {row["row"]: row for row in evaluation.results["rows"]}


# -- results ----------------------------------------------------------------------------------------------


def test_results_have_their_schema(session: Session, squeezed: Evaluation) -> None:
    results = squeezed.results
    assert list(results) == [
        "schema",
        "model",
        "protocol",
        "questions",
        "rows",
        "rate",
        "reconstruction",
        "size",
        "gate",
        "verdict",
    ]
    assert results["schema"] == 1
    assert [row["row"] for row in results["rows"]] == ROWS
    metrics = [name for m in ("f1", "exact_match", "f1_vs_text") for name in (m, f"{m}_ci95")]
    for row in results["rows"]:
        assert list(row) == ["row", "task", "n", *metrics, "answers_cut", "answers_differ"]
        assert (row["task"], row["n"]) == ("tiny-squad", 30)
        for name in ("f1", "exact_match", "f1_vs_text"):
            low, high = row[f"{name}_ci95"]
            assert low <= row[name] <= high
    assert list(results["rate"]) == ["bits_per_token", "vs_bf16", "vs_token_ids", "vs_text"]
    assert list(results["reconstruction"]) == [
        "recon",
        "mse",
        "cosine",
        "relative_error",
        "norm_ratio",
        "token_recovery",
        "token_recovery_seen",
        "token_recovery_unseen",
        "unseen",
    ]
    passages = len({question.context for question in spread(session.data.test, 30)})
    counted = {"n": 30, "passages": passages, "truncated_prompts": 0, "truncated_tokens": 0}
    assert results["questions"] == counted
    assert results["gate"] == {
        "prompts": 8,
        "difference": 0,
        "noise": 0,
        "changed": 0,
        "broken": False,
    }
    assert list(results["verdict"]) == ["level", "ratio", "ratio_ci95", "questions_needed", "text"]
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_scores_are_those_of_the_predictions(session: Session, squeezed: Evaluation) -> None:
    asked = {question.id: question for question in session.data.test}
    for name, row in by_row(squeezed).items():
        predictions = squeezed.predictions[name]
        assert len(predictions) == 30
        n, exact, f1 = score([asked[i] for i in predictions], predictions)
        assert (row["n"], row["exact_match"], row["f1"]) == pytest.approx((n, exact, f1))
        assert row["f1_vs_text"] == pytest.approx(f1 - by_row(squeezed)["text"]["f1"])
        others = squeezed.predictions["text"]
        assert row["answers_differ"] >= sum(predictions[i] != others[i] for i in predictions)
        if name == "text":
            assert row["answers_cut"] == row["answers_differ"] == 0
        assert all(text == text.strip() and "\n" not in text for text in predictions.values())


def test_the_rows_frame_the_result(untouched: Evaluation, squeezed: Evaluation) -> None:
    for evaluation in (untouched, squeezed):
        rows = by_row(evaluation)
        assert rows["raw"]["answers_differ"] == 0
        assert evaluation.predictions["raw"] == evaluation.predictions["text"]
        assert rows["text"]["f1"] > 60  # the embedded model answers
        assert rows["mean"]["f1"] < 20
        assert rows["no_context"]["f1"] < 30
    assert untouched.predictions["bottleneck"] == untouched.predictions["text"]  # bf16 holds the table
    assert untouched.results["reconstruction"]["recon"] == 0
    assert untouched.results["reconstruction"]["token_recovery"] == 1
    assert untouched.results["verdict"]["level"] == "reconstruction suffices"
    assert (
        squeezed.predictions["linear"] == squeezed.predictions["bottleneck"]
    )  # PCA's inverse is the optimum
    assert squeezed.predictions["linear"] != squeezed.predictions["text"]


def test_the_llm_receives_what_each_row_says(gibberish: Session) -> None:
    bottleneck = fitted(gibberish, "compressor.ratio=4", "adapter=mlp")
    with calls_of(gibberish.model.llm) as calls:
        run(bottleneck, gibberish)
    prefills = [call for call in calls if call["position_ids"].shape[1] > 1]
    received = dict(zip(ROWS, prefills, strict=False))  # 8 prompts are one batch; the gate comes last
    assert received["text"].get("inputs_embeds") is received["no_context"].get("inputs_embeds") is None

    ids, attention = received["text"]["input_ids"], received["text"]["attention_mask"].bool()
    original = gibberish.table[ids].float()
    cross = attention & (ids != gibberish.tokenizer.bos_token_id)
    expected = {
        "raw": original,
        "linear": bottleneck.reconstruct_linear(original, cross)[0],
        "bottleneck": bottleneck(original, cross),
        "mean": bottleneck.mean_embedding.expand_as(original),
    }
    for name, reconstructed in expected.items():
        embeds = received[name]["inputs_embeds"]
        assert torch.equal(received[name]["attention_mask"].bool(), attention)
        assert torch.allclose(embeds[cross], reconstructed[cross], rtol=1e-4, atol=1e-5), name
        assert torch.equal(embeds[attention & ~cross], original[attention & ~cross])
    assert not torch.allclose(expected["linear"][cross], expected["bottleneck"][cross], rtol=1e-2)


def test_results_are_reproduced_exactly(gibberish: Session) -> None:
    first, again, smaller_batches = (
        run(fitted(gibberish, "compressor.ratio=4", "adapter=linear"), with_settings(gibberish, setting))
        for setting in ("eval.batch_size=auto", "eval.batch_size=auto", "eval.batch_size=3")
    )
    assert len(set(first.predictions["bottleneck"].values())) > 4  # or equality would say little
    assert (again.results, again.predictions) == (first.results, first.predictions)
    assert (smaller_batches.results, smaller_batches.predictions) == (first.results, first.predictions)


def test_prompt_by_prompt_gives_what_the_lookup_gives(
    gibberish: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    bottleneck = fitted(gibberish, "compressor.ratio=4", "adapter=linear")
    fast = run(bottleneck, gibberish)
    monkeypatch.setattr(type(bottleneck.compressor), "tokenwise", False)
    slow = run(bottleneck, gibberish)
    assert slow.predictions == fast.predictions
    for part in ("rate", "reconstruction"):
        assert slow.results[part] == pytest.approx(fast.results[part], rel=1e-5)


def test_a_shorter_code_is_evaluated_and_has_no_reconstruction(gibberish: Session) -> None:
    evaluation = run(pairs(WIDTH), gibberish)
    assert list(by_row(evaluation)) == [name for name in ROWS if name != "linear"]  # it knows no inverse
    assert evaluation.results["reconstruction"] is None
    assert evaluation.results["gate"]["difference"] == 0
    assert len(set(evaluation.predictions["bottleneck"].values())) > 4
    assert evaluation.predictions["bottleneck"] != evaluation.predictions["text"]


def test_an_error_in_an_adapter_is_not_taken_for_a_missing_inverse(
    gibberish: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    bottleneck = fitted(gibberish, "compressor.ratio=4", "adapter=linear")

    def unfinished(*_: Any) -> None:
        raise NotImplementedError("later")

    monkeypatch.setattr(bottleneck.adapter, "forward", unfinished)
    with pytest.raises(NotImplementedError, match="later"):
        run(bottleneck, gibberish)


def test_truncated_prompts_are_counted_and_told(session: Session, untouched: Evaluation) -> None:
    notes = Notes()
    short = run(
        fitted(session, "compressor=identity", "adapter=identity"),
        with_settings(session, "data.max_prompt_tokens=60"),
        notes=notes,
    )
    counted = short.results["questions"]
    assert counted["truncated_prompts"] > 20
    assert counted["truncated_tokens"] > counted["truncated_prompts"]
    assert f"{counted['truncated_prompts']} of 30 prompts lost" in short.results["verdict"]["text"]
    assert any(f"{counted['truncated_prompts']} of 30 test prompts" in note for note in notes.notes)
    assert short.predictions["no_context"] == untouched.predictions["no_context"]
    assert short.predictions["text"] != untouched.predictions["text"]


# -- what must not pass unnoticed -------------------------------------------------------------------------


def test_embeddings_fed_in_wrongly_mark_the_run(gibberish: Session) -> None:
    llm: Any = load_llm(gibberish.model.folder, dtype="auto", device=gibberish.device)
    layer = llm.get_input_embeddings()
    llm.get_input_embeddings = lambda: lambda ids: 1.01 * layer(ids)  # what token ids do not go through
    notes = Notes()
    results = run(
        fitted(gibberish, "compressor=identity", "adapter=identity"), with_llm(gibberish, llm), notes=notes
    ).results
    assert results["gate"]["broken"]
    assert results["verdict"]["level"] == "protocol broken"
    assert f"logits differ by up to {results['gate']['difference']:.3g}" in results["verdict"]["text"]
    assert results["verdict"]["text"] in notes.notes


def test_rows_that_a_verdict_needs_cannot_be_left_out(gibberish: Session) -> None:
    with pytest.raises(ValueError, match="needs the rows text, raw, bottleneck, no_context"):
        evaluate(pairs(WIDTH), gibberish, cache=None, rows=["text", "bottleneck"])
    few = evaluate(pairs(WIDTH), gibberish, cache=None, rows=NEEDED)
    assert list(by_row(few)) == list(NEEDED)


# -- the cache --------------------------------------------------------------------------------------------


def kept(cache: Path) -> list[Path]:
    return sorted((cache / "answers").glob("*.jsonl"))


BARE = ["text", "raw", "mean", "no_context"]


def test_bare_answers_are_asked_once(gibberish: Session, tmp_path: Path) -> None:
    bottleneck = fitted(gibberish, "compressor.ratio=4", "adapter=linear")
    first = run(bottleneck, gibberish, tmp_path)
    assert len(kept(tmp_path)) == 3  # text with no_context, raw, mean; the bottleneck's are not kept
    notes = Notes()
    second = run(bottleneck, gibberish, tmp_path, notes)
    assert [name for name, speed in second.throughput.items() if speed is None] == BARE
    assert notes.notes == [f"{name}: 8 of 8 answers were cached." for name in BARE]
    assert (first.results, first.predictions) == (second.results, second.predictions)
    uncached = run(bottleneck, gibberish)
    assert (first.results, first.predictions) == (uncached.results, uncached.predictions)


def test_the_cache_knows_another_prompt_or_mean(gibberish: Session, tmp_path: Path) -> None:
    bottleneck = fitted(gibberish, "compressor.ratio=4", "adapter=linear")

    def again(*settings: str, through: Bottleneck = bottleneck) -> dict[str, int]:
        """How many questions each bare row was asked."""
        notes = Notes()
        run(through, with_settings(gibberish, *settings), tmp_path, notes)
        told = [note.split() for note in notes.notes if "were cached" in note]
        known = {words[0].rstrip(":"): int(words[1]) for words in told}
        return {name: 8 - known.get(name, 0) for name in BARE if known.get(name) != 8}

    assert again() == dict.fromkeys(BARE, 8)
    assert again(through=fitted(gibberish, "adapter=linear")) == {}
    shortened = again("data.max_prompt_tokens=50")
    assert "no_context" not in shortened
    assert shortened["text"] == shortened["raw"] == shortened["mean"] > 0
    assert again("scope=context") == {"raw": 8, "mean": 8}  # where ids are given, nothing crosses
    bottleneck.mean_embedding += 0.01
    assert again() == {"mean": 8}


def test_an_interrupted_evaluation_goes_on(gibberish: Session, tmp_path: Path) -> None:
    gibberish = with_settings(gibberish, "eval.batch_size=3")
    bottleneck = fitted(gibberish, "compressor.ratio=4", "adapter=linear")
    whole = run(bottleneck, gibberish)
    with pytest.raises(KeyboardInterrupt):
        run(bottleneck, gibberish, tmp_path, CtrlC("Evaluating bottleneck", 6))
    notes = Notes()
    resumed = run(bottleneck, gibberish, tmp_path, notes)
    assert "bottleneck: 6 of 8 answers were cached." in notes.notes
    assert (resumed.results, resumed.predictions) == (whole.results, whole.predictions)
    assert len(kept(tmp_path)) == 3


def test_the_embedded_model_answers_questions(session: Session) -> None:
    """What compression costs can only be seen on a model that answers: F1 at least 85 in the text row."""
    questions = spread(session.data.test, 300)
    asked = Condition("text", session.prompts(questions), None, None)
    answers = [answer.text for answer in Answering(session, None).answers(asked)]
    reached = score(questions, {q.id: a for q, a in zip(questions, answers, strict=True)})
    assert reached.n == 300
    assert reached.f1 >= 85

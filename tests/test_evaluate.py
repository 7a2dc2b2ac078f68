"""The evaluation as a whole, on the embedded model: rows, results, verdict, and the cache of baselines."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stage1.evaluation.lm_eval.squad_task import QATask, generate_answers

from conftest import Notes, fitted, small_config
from pairs import pairs
from random_llama import WIDTH, random_llama
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.config import merge, validate
from stage1.data.datasets import spread
from stage1.errors import UsageError
from stage1.evaluation import rows as module
from stage1.evaluation.evaluate import Evaluation, evaluate, verdict
from stage1.evaluation.lm_eval.model import Stage1LM
from stage1.evaluation.squad import score
from stage1.llm.loading import load_llm
from stage1.progress import Progress
from stage1.session import Session

ROWS = ["text", "raw", "linear", "bottleneck", "mean", "no_context"]


@pytest.fixture(scope="module")
def session(session: Session) -> Session:
    return with_settings(session, "eval.limit=30")


@pytest.fixture(scope="module")
def gibberish(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A random Llama: it answers nothing, but quickly, and differently to every change of its input."""
    folder = random_llama(tmp_path_factory.mktemp("llama"))
    config = small_config(f"model={folder}", "eval.limit=8", "eval.max_new_tokens=6")
    return Session.open(config, Progress(), weights="all")


def with_settings(session: Session, *settings: str) -> Session:
    tree = session.config.model_dump(mode="json")
    return replace(session, config=validate(merge(tree, {}, settings)))


def run(bottleneck: Bottleneck, session: Session, cache: Path | None = None, notes: Any = None) -> Evaluation:
    return evaluate(bottleneck, session, cache=cache, progress=notes or Progress())


@pytest.fixture(scope="module")
def squeezed(session: Session) -> Evaluation:
    return run(fitted(session, "compressor.ratio=4", "adapter=linear"), session)


@pytest.fixture(scope="module")
def untouched(session: Session) -> Evaluation:
    return run(fitted(session, "compressor=identity", "adapter=identity"), session)


def by_row(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    return {row["row"]: row for row in evaluation.results["rows"]}


# -- results ----------------------------------------------------------------------------------------------


def test_results_have_their_schema(squeezed: Evaluation) -> None:
    results = squeezed.results
    assert list(results) == [
        "schema",
        "protocol",
        "rows",
        "rate",
        "reconstruction",
        "truncated",
        "raw_equals_text",
        "raw_differs",
        "verdict",
    ]
    assert results["schema"] == 1
    assert [row["row"] for row in results["rows"]] == ROWS
    metrics = [name for m in ("f1", "exact_match", "f1_vs_text") for name in (m, f"{m}_ci95")]
    for row in results["rows"]:
        assert list(row) == ["row", "task", "n", *metrics]
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
    ]
    assert results["truncated"] == {"prompts": 0, "tokens": 0}
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_scores_are_those_of_the_predictions(session: Session, squeezed: Evaluation) -> None:
    asked = {question.id: question for question in session.data.test}
    for name, row in by_row(squeezed).items():
        predictions = squeezed.predictions[name]
        assert len(predictions) == 30
        n, exact, f1 = score([asked[i] for i in predictions], predictions)
        assert (row["n"], row["exact_match"], row["f1"]) == pytest.approx((n, exact, f1))
        assert row["f1_vs_text"] == pytest.approx(f1 - by_row(squeezed)["text"]["f1"])
        assert all(text == text.strip() and "\n" not in text for text in predictions.values())


def test_the_rows_frame_the_result(untouched: Evaluation, squeezed: Evaluation) -> None:
    for evaluation in (untouched, squeezed):
        rows = by_row(evaluation)
        assert evaluation.results["raw_equals_text"] is True
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


def test_the_llm_receives_what_each_row_says(gibberish: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        model: Any = load_llm(*args, **kwargs)
        model.model.register_forward_pre_hook(lambda _m, _a, given: calls.append(given), with_kwargs=True)
        return model

    monkeypatch.setattr(module, "load_llm", watched)
    bottleneck = fitted(gibberish, "compressor.ratio=4", "adapter=mlp")
    run(bottleneck, gibberish)
    prefills = [call for call in calls if call["position_ids"].shape[1] > 1]
    received = dict(zip(ROWS, prefills, strict=True))  # 8 prompts are one batch
    assert received["text"].get("inputs_embeds") is received["no_context"].get("inputs_embeds") is None

    ids, attention = received["text"]["input_ids"], received["text"]["attention_mask"].bool()
    original = gibberish.table[ids].float()
    cross = attention & (ids != gibberish.tokenizer.bos_token_id)
    expected = {
        "raw": original,
        "linear": bottleneck.rebuild_linear(original, cross)[0],
        "bottleneck": bottleneck(original, cross),
        "mean": bottleneck.mean_embedding.expand_as(original),
    }
    for name, rebuilt in expected.items():
        embeds = received[name]["inputs_embeds"]
        assert torch.equal(received[name]["attention_mask"].bool(), attention)
        assert torch.allclose(embeds[cross], rebuilt[cross], rtol=1e-4, atol=1e-5), name
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


def test_throughput(squeezed: Evaluation) -> None:
    assert set(squeezed.throughput) == set(ROWS)
    for speed in squeezed.throughput.values():
        assert speed is not None
        assert speed.questions_per_second == pytest.approx(30 / speed.seconds)
        assert speed.prompt_tokens_per_second > speed.questions_per_second


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
    assert evaluation.results["raw_equals_text"]
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
    truncated = short.results["truncated"]
    assert truncated["prompts"] > 20
    assert truncated["tokens"] > truncated["prompts"]
    assert any(f"{truncated['prompts']} of 30 test prompts" in note for note in notes.notes)
    assert short.predictions["no_context"] == untouched.predictions["no_context"]
    assert short.predictions["text"] != untouched.predictions["text"]


# -- what must not pass unnoticed -------------------------------------------------------------------------


def test_raw_differing_from_text_marks_the_run(gibberish: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def lying(lm: Any, task: Any) -> list[str]:
        answers = generate_answers(lm, task)
        return ["something else", *answers[1:]] if lm.label.endswith("raw") else answers

    monkeypatch.setattr("stage1.evaluation.lm_eval.squad_task.generate_answers", lying)
    notes = Notes()
    results = run(
        fitted(gibberish, "compressor=identity", "adapter=identity"), gibberish, notes=notes
    ).results
    assert (results["raw_equals_text"], results["raw_differs"]) == (False, 1)
    assert results["verdict"]["level"] == "protocol broken"
    assert "raw differs from text on 1 of 8 questions" in results["verdict"]["text"]
    assert results["verdict"]["text"] in notes.notes


def test_a_model_that_scales_its_embeddings_is_refused(
    gibberish: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scaled(*args: Any, **kwargs: Any) -> Any:
        model: Any = load(*args, **kwargs)
        model.get_input_embeddings().register_forward_hook(lambda _module, _args, out: out * 16)
        return model

    load = load_llm
    monkeypatch.setattr(module, "load_llm", scaled)
    with pytest.raises(UsageError, match="changes its embeddings after looking them up"):
        run(fitted(gibberish, "compressor=identity", "adapter=identity"), gibberish)


@pytest.mark.parametrize(
    ("text", "ours", "bare", "level"),
    [
        (90.0, 76.6, -50.0, "reconstruction suffices"),
        (90.0, 76.4, -50.0, "needs generation-aware training"),
        (90.0, 54.1, -50.0, "needs generation-aware training"),
        (90.0, 53.9, -50.0, "too lossy, or broken"),
        (3.0, 3.0, 0.1, "no ceiling"),  # as good without the context, within the interval
        (0.0, 0.0, -1.0, "no ceiling"),
    ],
)
def test_verdict(text: float, ours: float, bare: float, level: str) -> None:
    rows: dict[str, dict[str, Any]] = {
        "text": {"f1": text},
        "raw": {"f1": text, "n": 100},
        "bottleneck": {"f1": ours},
        "mean": {"f1": 1.5},
        "no_context": {"f1": 2.5, "f1_vs_text_ci95": [-80.0, bare]},
    }
    said = verdict(rows, 0, {"token_recovery": 0.625})
    assert said["level"] == level
    assert said["ratio"] == (pytest.approx(ours / text) if text else None)
    assert said["text"].startswith(f"{level}: ")
    if level != "no ceiling":
        assert (
            f"F1 {ours:.1f} is {100 * ours / text:.0f} % of the text row's {text:.1f} (mean 1.5)"
            in said["text"]
        )
        assert "62.5 % of the rebuilt tokens" in said["text"]
    assert verdict(rows, 7, None)["level"] == "protocol broken"


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
    assert notes.notes == [f"{name}: 8 of 8 answers were known already." for name in BARE]
    assert (first.results, first.predictions) == (second.results, second.predictions)
    uncached = run(bottleneck, gibberish)
    assert (first.results, first.predictions) == (uncached.results, uncached.predictions)


def asked_again(
    bottleneck: Bottleneck, session: Session, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, int]:
    """How many questions each bare row was asked."""
    asked: dict[str, int] = {}
    answer = Stage1LM._answer

    def counted(self: Stage1LM, requests: Any, ask: Any) -> Any:
        answers = answer(self, requests, ask)
        asked[self.label.removeprefix("Asking: ")] = self.asked
        return answers

    with monkeypatch.context() as patch:
        patch.setattr(Stage1LM, "_answer", counted)
        run(bottleneck, session, cache)
    return {name: count for name, count in asked.items() if name in BARE and count}


def test_the_cache_knows_another_question_prompt_or_setting(
    gibberish: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bottleneck = fitted(gibberish, "compressor.ratio=4", "adapter=linear")

    def again(*settings: str, through: Bottleneck = bottleneck) -> dict[str, int]:
        return asked_again(through, with_settings(gibberish, *settings), tmp_path, monkeypatch)

    assert again() == dict.fromkeys(BARE, 8)
    assert again(through=fitted(gibberish, "adapter=linear")) == {}
    other = again("eval.limit=7")  # some of them are the same questions
    assert other == dict.fromkeys(BARE, other["text"])
    assert 0 < other["text"] < 7
    for setting in ("eval.max_new_tokens=5", "eval.batch_size=3", "dtype=bfloat16"):
        assert again(setting) == dict.fromkeys(BARE, 8), setting
    shortened = again("data.max_prompt_tokens=50")
    assert "no_context" not in shortened
    assert shortened["text"] == shortened["raw"] == shortened["mean"] > 0
    assert again("scope=context") == {"mean": 8}
    bottleneck.mean_embedding += 0.01
    assert again() == {"mean": 8}


def test_an_interrupted_evaluation_goes_on(
    gibberish: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bottleneck = fitted(gibberish, "compressor.ratio=4", "adapter=linear")
    whole, add = run(bottleneck, gibberish), Stage1LM.add_partial
    done: list[Any] = []

    def dying(self: Stage1LM, attr: str, req: Any, res: Any) -> None:
        add(self, attr, req, res)
        if self.label == "Asking: bottleneck":
            done.append(req)
            if len(done) == 5:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stage1LM, "add_partial", dying)
        with pytest.raises(KeyboardInterrupt):
            run(bottleneck, gibberish, tmp_path)
    notes = Notes()
    resumed = run(bottleneck, gibberish, tmp_path, notes)
    assert "bottleneck: 5 of 8 answers were known already." in notes.notes
    assert (resumed.results, resumed.predictions) == (whole.results, whole.predictions)
    assert len(kept(tmp_path)) == 3


def test_the_cache_knows_another_model(
    gibberish: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bottleneck = fitted(gibberish, "compressor.ratio=4", "adapter=linear")
    asked_again(bottleneck, gibberish, tmp_path, monkeypatch)
    monkeypatch.setattr(module, "model_sha256", lambda folder: "of other weights")
    assert asked_again(bottleneck, gibberish, tmp_path, monkeypatch) == dict.fromkeys(BARE, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_raw_equals_text_on_a_gpu(dtype: str, session: Session) -> None:
    bottleneck = fitted(session, "compressor=identity", "adapter=identity")
    device = torch.device("cuda")
    there = replace(with_settings(session, f"dtype={dtype}"), device=device, table=session.table.to(device))
    evaluation = run(bottleneck, there)
    assert evaluation.results["raw_equals_text"]
    assert evaluation.predictions["bottleneck"] == evaluation.predictions["text"]


def test_the_embedded_model_answers_a_thousand_questions() -> None:
    """What compression costs can only be seen on a model that answers: F1 at least 85 in the text row."""
    whole = Session.open(small_config("eval.limit=1000"), Progress(), weights="all", data="all test")
    questions = spread(whole.data.test, 1000)
    prompts = whole.prompts(questions)
    model = load_llm(whole.folder, dtype="auto", device=whole.device)
    lm = Stage1LM(model, whole.tokenizer, prompts=prompts, batch_size=64)
    answers = generate_answers(lm, QATask("tiny-squad", questions, prompts, 32))
    reached = score(questions, {q.id: a for q, a in zip(questions, answers, strict=True)})
    assert reached.n == 1000
    assert reached.f1 >= 85

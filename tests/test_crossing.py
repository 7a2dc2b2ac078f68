"""What crosses the bottleneck: the embeddings that the LLM receives, under every rule and by every way."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from conftest import FEW, Invoke, opened, refused, settings_args, small_config
from stage1.bottleneck.splice import rms
from stage1.data.datasets import spread
from stage1.evaluation.answers import Answering
from stage1.evaluation.conditions import Condition
from stage1.llm.model import load_llm
from stage1.plugins.interfaces import Loss
from stage1.plugins.tensors import Embedded, LossInputs
from stage1.session import Session
from stage1.training.inputs import RoundTrip
from stage1_compressors.pca import PCA
from trainings import trainer_for

OWN: dict[str, Any] = {"scope": "prompt", "raw_anchor": False, "keep_special": True, "magnitude": "free"}
CHANGES: list[dict[str, Any]] = [
    {},
    {"scope": "context"},
    {"raw_anchor": True},
    {"keep_special": False},
    {"magnitude": "vocab"},
    {"magnitude": "sent"},
    {"scope": "context", "keep_special": False, "magnitude": "sent"},
    {"raw_anchor": True, "keep_special": False, "magnitude": "vocab"},
]
UNDER = pytest.mark.parametrize(
    "change", CHANGES, ids=lambda change: " ".join(map(str, change.items())) or "own"
)


class Prefill(NamedTuple):
    """Prompts as the LLM received them."""

    ids: Tensor  # [B, L]
    attention: Tensor  # [B, L] bool
    embeds: Tensor  # [B, L, D]


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[Prefill]:
    """The prompts of the row `bottleneck`, taken at the decoder's own door."""
    prefills: list[Prefill] = []
    asking: list[tuple[Tensor, Tensor]] = []  # the prompts in hand, until their prefill came by

    def watched(*args: Any, **kwargs: Any) -> Any:
        model: Any = load_llm(*args, **kwargs)

        def note(_module: Any, _args: Any, given: dict[str, Any]) -> None:
            if asking:
                ids, attention = asking.pop()
                prefills.append(Prefill(ids, attention.bool(), given["inputs_embeds"].clone()))

        model.model.register_forward_pre_hook(note, with_kwargs=True)
        return model

    def answers(answering: Answering, condition: Condition) -> Any:
        def embed(ids: Tensor, cross: Tensor, attention: Tensor) -> Embedded:
            asking.append((ids, attention))
            assert condition.embed is not None
            return condition.embed(ids, cross, attention)

        return own(
            answering, condition._replace(embed=embed) if condition.name == "bottleneck" else condition
        )

    own = Answering.answers
    monkeypatch.setattr(Answering, "answers", answers)
    monkeypatch.setattr("stage1.session.load_llm", watched)
    return prefills


@pytest.fixture(scope="module")
def session() -> Session:
    return opened(*FEW)


def positions(ids: Tensor, attention: Tensor, session: Session, rules: dict[str, Any]) -> Tensor:
    """Where `ids` [B, L] cross, found in the prompts' text: [B, L] bool."""
    cross = torch.zeros_like(attention)
    everyone = [*session.data.train, *session.data.test]
    for row, (tokens, attends) in enumerate(zip(ids, attention, strict=True)):
        text = str(session.tokenizer.decode(tokens[attends], skip_special_tokens=True))
        question = next(q for q in everyone if f"{q.context}\nQuestion: {q.question}\n" in text)
        start, stop = (0, len(text)) if rules["scope"] == "prompt" else (9, 9 + len(question.context))
        if rules["raw_anchor"]:
            stop = min(stop, text.rindex("\nAnswer:"))
        encoded = session.tokenizer(text, return_offsets_mapping=True)
        assert encoded["input_ids"] == tokens[attends].tolist()
        inside = [end > 0 and start < end <= stop for _, end in encoded["offset_mapping"]]
        inside[0] = not rules["keep_special"]  # BOS, the only special token there is
        cross[row, attends] = torch.tensor(inside)
    return cross


def check(prefill: Prefill, session: Session, rules: dict[str, Any]) -> None:
    """Exactly the positions that ought to differ do, and are as long as the rule says."""
    ids, attends, embeds = prefill
    cross = positions(ids, attends, session, rules)
    original = session.table[ids].float()
    assert cross.any()
    assert not cross[attends].all() or not (rules["keep_special"] or rules["raw_anchor"])
    assert torch.equal((embeds != original).any(-1)[attends], cross[attends])
    bos = ids == session.tokenizer.bos_token_id
    assert (bos & attends).sum() == len(ids)
    assert torch.equal(embeds[bos], original[bos]) is rules["keep_special"]

    found, own = rms(embeds[cross])[:, 0], rms(original[cross])[:, 0]
    vocabulary = rms(session.table.float()).mean()
    is_own = torch.allclose(found, own, rtol=2**-8, atol=0)
    is_bfloat16 = torch.allclose(found, own.bfloat16().float(), rtol=1e-4, atol=0)
    is_vocabulary = torch.allclose(found, vocabulary.expand_as(found), rtol=1e-4, atol=0)
    magnitude = rules["magnitude"]
    assert (is_own, is_bfloat16, is_vocabulary) == (
        magnitude == "sent",
        magnitude == "sent",
        magnitude == "vocab",
    )


def as_settings(rules: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in rules.items()]


def as_flags(rules: dict[str, Any]) -> list[str]:
    flags = []
    for key, value in rules.items():
        name = key.replace("_", "-")
        flags += (
            [f"--{name}" if value else f"--no-{name}"] if isinstance(value, bool) else [f"--{name}", value]
        )
    return flags


def bits(session: Session, rules: dict[str, Any]) -> float:
    """Bits per prompt token, counted by hand."""
    total, tokens = 0.0, 0
    questions = spread(session.data.test, 4)
    for prompt in session.prompts(questions):
        ids = torch.tensor([prompt.ids])
        crossing = int(positions(ids, torch.ones_like(ids, dtype=torch.bool), session, rules).sum())
        per_vector = 32 * 16 + (16 if rules["magnitude"] == "sent" else 0)  # 256 wide, ratio 8
        total += crossing * per_vector + (len(prompt.ids) - crossing) * math.log2(len(session.table))
        tokens += len(prompt.ids)
    return total / tokens


# -- evaluation -------------------------------------------------------------------------------------------


@UNDER
def test_a_run_of_its_own(
    change: dict[str, Any], invoke: Invoke, received: list[Prefill], session: Session
) -> None:
    rules = OWN | change
    done = invoke("train", "--output", "run", "--json", "-q", *settings_args([*FEW, *as_settings(change)]))
    results = json.loads(done.printed)
    check(received[-1], session, rules)  # the ones before are the selection's
    assert results["protocol"] == results["protocol"] | rules
    assert results["rate"]["bits_per_token"] == pytest.approx(bits(session, rules), rel=1e-9)


def test_another_rule_at_the_evaluation(invoke: Invoke, received: list[Prefill], session: Session) -> None:
    """One trained run under every rule: the table and the JSON say which, the run's results stay."""
    assert invoke("train", "--output", "run", "-q", *settings_args(FEW)).code == 0
    before = Path("run/results.json").read_bytes()
    for change in CHANGES[1:]:
        received.clear()
        done = invoke("eval", "run", "--json", "-q", "--output", "other.json", *as_flags(change))
        results = json.loads(done.printed)
        (prefill,) = received
        check(prefill, session, OWN | change)
        written = json.loads(Path("other.json").read_text())
        assert results == results | written
        assert results.keys() - written.keys() == {"run", "timings"}
        assert results["protocol"] == results["protocol"] | OWN | change
        assert results["schema"] == 1
        assert results["rate"]["bits_per_token"] == pytest.approx(bits(session, OWN | change), rel=1e-9)
        assert Path("run/results.json").read_bytes() == before
    shown = invoke("eval", "run", "-q", *as_flags(CHANGES[-1])).out
    assert "scope prompt, closing `Answer:` raw, special tokens cross, magnitude vocab" in shown
    received.clear()
    Path("run/results.json").unlink()
    assert invoke("eval", "run", "-q", *as_flags(OWN)).code == 0  # its own rules, spelt out: they are kept
    check(received[0], session, OWN)
    assert Path("run/results.json").read_bytes() == before


def test_a_rule_back_to_the_default(invoke: Invoke, received: list[Prefill], session: Session) -> None:
    trained_under = as_settings(CHANGES[-1])
    assert invoke("train", "--output", "run", "-q", *settings_args([*FEW, *trained_under])).code == 0
    received.clear()
    assert invoke("eval", "run", "-q", *as_flags(OWN)).code == 0
    check(received[0], session, OWN)


def test_a_sweep_over_the_rules(invoke: Invoke, received: list[Prefill], session: Session) -> None:
    axes = ["scope=prompt,context", "magnitude=vocab,sent"]
    over = [part for axis in axes for part in ("--over", axis)]
    fixed = settings_args([*FEW, "raw_anchor=true"])
    cells = json.loads(invoke("sweep", *over, "--output", "s", "--json", "-q", *fixed).printed)["cells"]
    tested = [prefill for prefill in received if len(prefill.ids) == 4]  # a check asks one question
    assert len(cells) == 4
    for cell, prefill in zip(cells, tested, strict=True):
        rules = OWN | {"raw_anchor": True} | cell["settings"]
        check(prefill, session, rules)
        assert cell["results"]["protocol"] == cell["results"]["protocol"] | rules
        assert cell["results"]["rate"]["bits_per_token"] == pytest.approx(bits(session, rules), rel=1e-9)


def test_a_rule_that_the_compressor_cannot_keep(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("train", "--output", "run", "-q", *settings_args(FEW)).code == 0
    before = Path("run/results.json").read_bytes()
    monkeypatch.setattr(PCA, "changes_length", True)
    said = "magnitude: 'sent' transmits the RMS at each position, and the compressor 'pca' changes"
    refused(invoke("eval", "run", "-q", "--magnitude", "sent"), said)
    assert invoke("eval", "run", "-q", "--scope", "text").code == 2
    assert Path("run/results.json").read_bytes() == before


# -- training ---------------------------------------------------------------------------------------------


class Looks(Loss):
    """Keeps what the LLM would receive."""

    name = "looks"
    needs_llm = True
    tokenwise = False

    def forward(self, inputs: LossInputs) -> Tensor:
        return inputs.llm.student.prompt.square().mean()


@UNDER
def test_the_llms_losses_see_the_same(change: dict[str, Any], session: Session) -> None:
    config = small_config(*FEW, *as_settings(change))
    trainer = trainer_for(config, loss=Looks, session=session.under(config))
    trainer.bottleneck.fit(trainer.stats, session.table)
    batch = trainer.batches.batch(0)
    outputs = trainer.present(batch, RoundTrip(trainer.bottleneck)).llm
    assert outputs.student.prompt.isfinite().all()
    assert torch.equal(outputs.original.embeds, batch.embeds)
    assert torch.equal(outputs.reconstructed.attention, batch.attention)
    check(Prefill(batch.ids, batch.attention, outputs.reconstructed.embeds.detach()), session, OWN | change)

"""What the objective asked for and cannot see, and whether reconstruction and F1 went apart."""

import json
import math
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import stage1.diagnosis.divergence as divergence
import stage1.diagnosis.objective as objective
import trainings
from conftest import small_config
from pairs import pairs
from plugin_sites import Site
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.diagnosis.case import Case
from stage1.plugins import ResolvedLoss, load_plugins, resolve
from stage1.plugins.interfaces import Loss
from stage1.plugins.tensors import LossInputs
from stage1.runs.run import Run
from stage1.session import Session
from stage1.training.inputs import RoundTrip
from stage1.training.objective import Objective
from stage1.training.trainer import Trainer
from test_diagnose_probes import case_of

N = 16
FITTED = ("compressor.ratio=4", "adapter=linear")


@pytest.fixture
def case(session: Session, bottleneck: Bottleneck) -> Case:
    return case_of(bottleneck, session, N)


def under(case: Case, *settings: str) -> Case:
    """The case under another configuration."""
    return replace(case, session=case.session.under(small_config(*settings)))


# -- from the metrics -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short run under two losses."""
    settings = ("losses.recon=1", "losses.cosine=0.1", "train.steps=20")
    return trainings.trained(tmp_path_factory.mktemp("runs") / "run", *settings)


def test_terms_of_a_real_run(case: Case, trained: Run) -> None:
    metrics = trained.metrics()
    measured = objective.measure(replace(under(case, "losses.recon=1", "losses.cosine=0.1"), metrics=metrics))
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    start, first, last = [entry for entry in metrics if "solved" not in entry]
    assert measured["terms"]["recon"] == {
        "mean_share": (first["terms"]["recon"]["share"] + last["terms"]["recon"]["share"]) / 2,
        "last_share": last["terms"]["recon"]["share"],
        "first_value": first["terms"]["recon"]["value"],
        "last_value": last["terms"]["recon"]["value"],
        "weight": 1.0,
    }
    shares = {name: term["mean_share"] for name, term in measured["terms"].items()}
    assert sum(shares.values()) == pytest.approx(1)
    assert measured["dominating"] == {"term": "recon", "share": shares["recon"]}
    assert shares["recon"] > shares["cosine"]
    cosine = [entry["gradients"]["cosine"]["recon~cosine"] for entry in (first, last)]
    assert measured["gradients"]["cosine"] == {"recon~cosine": sum(cosine) / 2}
    assert set(measured["gradients"]["norm"]) == {"recon", "cosine"}
    assert start["step"] == 0
    assert measured["recon_first"] == start["selection"]["recon"]
    assert measured["recon_last"] == last["selection"]["recon"]
    assert measured["recon_best"] == min(entry["selection"]["recon"] for entry in metrics)
    assert measured["teacher_forced"] == []
    assert measured["teacher_forced_accuracy"] is None
    assert measured["kept_step"] == min(metrics, key=lambda entry: entry["selection"]["score"])["step"]
    assert measured["on_selection"]["recon"]["last"] < measured["on_selection"]["recon"]["first"]


def test_the_closed_form_at_the_end_is_no_optimiser_step(case: Case) -> None:
    solved = {"step": 11, "solved": True, "selection": {"recon": 0.1, "score": 0.1}}
    measured = objective.measure(replace(case, metrics=[logged(recon=0.3), solved]))
    assert (measured["recon_first"], measured["recon_last"], measured["recon_best"]) == (0.2, 0.2, 0.1)


def test_without_training_there_is_nothing_to_read(case: Case) -> None:
    measured = objective.measure(under(case, "losses.answer_ce=1"))
    for name in ("terms", "dominating", "gradients", "recon_first", "recon_last", "recon_best"):
        assert measured[name] is None
    assert measured["teacher_forced"] == []  # the configuration names it, nothing was trained
    assert measured["magnitude_blind"] is False


def logged(**values: float) -> dict[str, Any]:
    """An entry of the metrics with terms of these values and the weight 1."""
    whole = sum(values.values())
    terms = {name: {"value": v, "weight": 1.0, "share": v / whole} for name, v in values.items()}
    return {"step": 10, "terms": terms, "selection": {"recon": 0.2, "score": 1.0}}


def test_terms_on_the_selection_split(case: Case) -> None:
    checks = [{**logged(kl=0.3), "selection": {"score": v, "terms": {"kl": v}}} for v in (2.0, 5.0, 3.0)]
    checks = [{**check, "step": 10 * number} for number, check in enumerate(checks)]
    measured = objective.measure(replace(under(case, "losses={kl: 1}"), metrics=checks))
    assert measured["on_selection"] == {"kl": {"first": 2.0, "last": 3.0}}
    assert measured["kept_step"] == 0


def test_one_term_dominates_none(case: Case) -> None:
    measured = objective.measure(replace(case, metrics=[logged(recon=0.3)]))
    assert measured["dominating"] is None
    assert measured["gradients"] is None


def test_the_losses_of_the_second_phase_are_those_that_were_logged(case: Case) -> None:
    """Phase 1 forced the teacher; phase 2, from its weights, asks for the direction alone."""
    settings = ("losses.answer_ce=1", "then.losses.cosine=1")
    both = under(case, *settings)
    first = objective.measure(replace(both, metrics=[logged(recon=1, answer_ce=2)]))
    assert first["magnitude_blind"] is False
    second = objective.measure(replace(both, metrics=[logged(cosine=1)]))
    assert second["magnitude_blind"] is True
    assert first["teacher_forced"] == second["teacher_forced"] == ["answer_ce"]


# -- teacher forcing --------------------------------------------------------------------------------------


def test_accuracy_with_and_without_the_answer(case: Case) -> None:
    """Against one prompt at a time, without padding, through the bare model."""
    forced = replace(under(case, "losses.answer_ce=1"), metrics=[logged(recon=1, answer_ce=2)])
    measured = objective.measure(forced)["teacher_forced_accuracy"]
    answers = case.session.answer_ids(case.questions, case.prompts)
    right, alone = [], []
    for prompt, answer in zip(case.prompts, answers, strict=True):
        embeds = case.session.table[torch.tensor([prompt.ids])].float()
        reconstructed = case.bottleneck(embeds, torch.tensor([prompt.cross]))
        shown = torch.where(torch.tensor([prompt.cross])[..., None], reconstructed, embeds)
        gold = case.session.table[torch.tensor([answer])].float()
        with torch.no_grad():
            logits = case.session.model.llm(inputs_embeds=torch.cat([shown, gold], 1)).logits[0]
        guesses = logits[len(prompt.ids) - 1 : -1].argmax(-1).tolist()
        hits = [guess == token for guess, token in zip(guesses, answer, strict=True)]
        right += hits
        alone.append(hits[0])
    assert measured == {
        "given_the_answer": pytest.approx(sum(right) / len(right)),
        "alone": pytest.approx(sum(alone) / N),
    }
    assert measured["alone"] < measured["given_the_answer"] < 1  # or the two could be mixed up


def test_accuracy_where_the_length_changes(case: Case) -> None:
    settings = ("losses={answer_ce: 1}",)
    shorter = replace(under(case, *settings), bottleneck=pairs(case.session.table.shape[1]))
    measured = objective.measure(replace(shorter, metrics=[logged(answer_ce=2)]))
    assert measured["teacher_forced_accuracy"]["alone"] < 0.5
    assert measured["magnitude_blind"] is False
    assert objective.measure(replace(shorter, session=case.session))["magnitude_blind"] is None


# -- magnitude --------------------------------------------------------------------------------------------


LEAK = '''
    """A loss that gives the reconstructed vectors the originals' lengths before it looks at them."""
    from stage1 import Loss, hookimpl

    class Leaking(Loss):
        """MSE after rescaling by the original's norm."""
        name = "leaking"

        def forward(self, inputs):
            norms = [v.norm(dim=-1, keepdim=True) for v in (inputs.original, inputs.reconstruction)]
            rescaled = inputs.reconstruction * (norms[0] / norms[1])
            return inputs.mean((rescaled - inputs.original).square().mean(-1))

    @hookimpl
    def stage1_losses():
        return Leaking
'''


@pytest.fixture
def leaking(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("leak", {"point": LEAK})
    registry = site.load()
    monkeypatch.setattr(objective, "load_plugins", lambda: registry)


@pytest.mark.usefixtures("leaking")
@pytest.mark.parametrize(
    ("losses", "blind", "terms"),
    [
        ("{leaking: 1}", True, ["leaking"]),
        ("{recon: 1}", False, []),
        ("{recon: auto, leaking: auto}", False, ["leaking"]),
        ("{recon: 1.0e-9, leaking: 1}", True, ["leaking"]),  # a term that counts nothing sees nothing
        ("{cosine: 1, leaking: 0.5}", True, ["cosine", "leaking"]),
        ("{norm: 1}", False, []),
        ("{kl: 1, cosine: 1}", False, ["cosine"]),
        ("{hidden: 1}", False, []),
        ("{answer_kl: 1}", False, []),
    ],
)
def test_objectives_that_cannot_see_magnitude(case: Case, losses: str, blind: bool, terms: list[str]) -> None:
    settings = [f"losses={losses}"]
    measured = objective.measure(under(case, *settings))
    assert measured["magnitude_blind"] is blind
    assert measured["blind_terms"] == terms


def test_the_losses_see_what_training_shows_them(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they are given at the true scale is the trainer's own on the same batch."""

    class Watching(Loss):
        name = "watching"
        needs_llm = True
        seen: ClassVar[list[LossInputs]] = []

        def forward(self, inputs: LossInputs) -> Tensor:
            self.seen.append(inputs)
            return inputs.reconstruction.sum()

    config = small_config(*FITTED, "train.uniform=0.5")
    resolved = resolve(config, load_plugins())
    resolved = resolved._replace(losses={"watching": ResolvedLoss(Watching, Watching.Config(), 1.0)})
    watched = replace(case, session=case.session.under(config))
    objective.blindness(watched, resolved)
    plain, half, double = Watching.seen

    trainer = Trainer(resolved, watched.session)
    trainer.bottleneck.load_state_dict(case.bottleneck.state_dict())
    batch = objective.training_batch(watched, Objective(resolved))
    theirs = trainer.present(batch, RoundTrip(trainer.bottleneck))
    assert len(batch.ids) == 16
    weights = trainer.batches.weight  # type: ignore[union-attr]
    assert torch.equal(plain.weights, weights[plain.ids] * (plain.weights > 0))
    assert plain.variance == theirs.variance
    for inputs, scale in ((plain, 1), (half, 0.5), (double, 2)):
        assert torch.equal(inputs.original, theirs.original)
        assert torch.allclose(inputs.reconstruction, scale * theirs.reconstruction, atol=1e-6)
        assert torch.equal(inputs.llm.ordinary, theirs.llm.ordinary)
        crossing = inputs.weights > 0
        reconstructed, original = inputs.llm.reconstructed.embeds, theirs.llm.reconstructed.embeds
        assert torch.allclose(reconstructed[crossing], scale * original[crossing], atol=1e-6)
        assert torch.equal(reconstructed[~crossing], original[~crossing])


# -- splits -----------------------------------------------------------------------------------------------


def test_passages_in_two_splits(case: Case) -> None:
    data = case.session.data
    assert objective.measure(case)["selection_on_test"] == objective.measure(case)["training_on_test"] == 0
    spaced = [q._replace(context=q.context.replace(" ", "  ")) for q in data.test[:40]]
    mixed = data._replace(selection=data.selection + spaced, train=data.test[:1] + data.train)
    measured = objective.measure(replace(case, session=replace(case.session, questions=mixed)))
    assert measured["selection_on_test"] == len({q.context for q in data.test[:40]}) > 1
    assert measured["training_on_test"] == 1


def test_other_data_than_the_run_was_trained_on(case: Case) -> None:
    data = case.session.data._replace(train=[], selection=[])
    measured = objective.measure(replace(case, session=replace(case.session, questions=data)))
    assert measured["magnitude_blind"] is None


# -- divergence -------------------------------------------------------------------------------------------


def checked(case: Case, *points: tuple[float, float], questions: int = 50) -> dict[str, Any]:
    """`divergence.measure` where the checkpoints have these (recon, F1)."""
    metrics = [
        {"step": 10 * k, "selection": {"recon": recon, "f1": f1, "questions": questions, "score": recon}}
        for k, (recon, f1) in enumerate(points)
    ]
    return divergence.measure(replace(case, metrics=metrics))


def test_reconstruction_improves_while_f1_falls(case: Case) -> None:
    measured = checked(case, (0.5, 60), (0.4, 70), (0.3, 45), (0.2, 20), (0.1, 5))
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    assert measured["checkpoints"][1] == {"step": 10, "recon": 0.4, "f1": 70, "questions": 50}
    assert measured["diverged"][0] == {
        "from": 10,
        "to": 40,
        "recon_from": 0.4,
        "recon_to": 0.1,
        "f1_from": 70,
        "f1_to": 5,
    }
    falls = [pair["f1_from"] - pair["f1_to"] for pair in measured["diverged"]]
    assert falls == [65, 55, 50]
    assert measured["correlation"] == pytest.approx(0.9)


def test_what_is_no_divergence(case: Case) -> None:
    assert checked(case, (0.5, 20), (0.4, 40), (0.3, 60), (0.2, 80))["diverged"] == []
    assert checked(case, (0.2, 80), (0.3, 40))["diverged"] == []  # both got worse
    assert checked(case, (0.200, 80), (0.191, 40))["diverged"] == []  # recon stood still
    assert checked(case, (0.2, 98), (0.1, 94.5))["diverged"] == []  # certain, but too little to matter


def test_noise_is_no_divergence(case: Case) -> None:
    """F1 near 50 on 50 questions has a standard error of 7: 29 points between two may be noise, 31 not."""
    assert 3 * math.sqrt(2) * 100 * math.sqrt(0.25 / 50) == pytest.approx(30, abs=0.01)
    assert checked(case, (0.5, 64.5), (0.4, 35.5))["diverged"] == []
    assert len(checked(case, (0.5, 65.5), (0.4, 34.5))["diverged"]) == 1
    assert checked(case, (0.5, 63), (0.4, 37), questions=60)["diverged"] == []
    assert len(checked(case, (0.5, 63), (0.4, 37), questions=1000)["diverged"]) == 1


def test_ten_checkpoints_of_a_constant_f1_seldom_diverge(case: Case) -> None:
    """Every pair is compared, which makes chance falls many; a rule of two standard errors finds 4 in 5."""
    draws = np.random.default_rng(0).binomial(100, 0.7, size=(200, 10))
    settled = replace(case.session, questions=case.session.data._replace(selection=[]))
    found = [
        checked(
            replace(case, session=settled),
            *((1 - 0.09 * k, float(f1)) for k, f1 in enumerate(row)),
            questions=100,
        )
        for row in draws
    ]
    assert sum(bool(measured["diverged"]) for measured in found) / len(found) < 0.1


def test_rank_correlation_needs_four_checkpoints_that_differ(case: Case) -> None:
    assert checked(case, (0.5, 20), (0.4, 40), (0.3, 60))["correlation"] is None
    falling = checked(case, (0.5, 20), (0.4, 40), (0.3, 60), (0.2, 61))
    assert falling["correlation"] == pytest.approx(-1)
    assert checked(case, *[(0.5 - k / 10, 50.0) for k in range(4)])["correlation"] is None


def test_checkpoints_that_were_not_asked(case: Case, trained: Run) -> None:
    nothing: dict[str, Any] = {"checkpoints": [], "diverged": [], "correlation": None}
    assert divergence.measure(case) == nothing
    assert divergence.measure(replace(case, metrics=trained.metrics())) == nothing
    shorter = [{"step": 0, "selection": {"f1": 50.0, "objective": 2.0, "score": 2.0}}]
    assert divergence.measure(replace(case, metrics=shorter)) == nothing

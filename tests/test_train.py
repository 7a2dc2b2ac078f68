"""Training: it improves, it is reproducible, it survives kills, interrupts, NaN and lack of memory."""

import json
import math
import os
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import (
    NARROW,
    SMALL,
    CtrlC,
    Invoke,
    Notes,
    embedded,
    full_disk,
    launched,
    refused,
    settings_args,
    small_config,
)
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import count_tokens
from stage1.config import RunConfig
from stage1.errors import ConfigError, TrainingError
from stage1.plugins import load_plugins
from stage1.plugins.interfaces import Loss
from stage1.plugins.tensors import LossInputs, TokenStats
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.session import Session
from stage1.training.course import GAIN, Course, told, unimproved
from stage1.training.inputs import RoundTrip
from stage1.training.schedule import LATE, Mean, learning_rate
from trainings import same, trained, trainer_for, weights

WIDE = "adapter.expansion=4"


def narrow(*settings: str) -> RunConfig:
    """A small run with a narrow adapter."""
    return small_config(NARROW, *settings)


# -- what training does -------------------------------------------------------------------------------


def test_training_starts_at_the_linear_optimum_and_only_gets_better(tmp_path: Path) -> None:
    linear = trained(tmp_path / "linear", "adapter=linear", "train.steps=0")
    residual = trained(tmp_path / "residual", WIDE, "train.steps=60")
    [closed_form] = linear.metrics()
    first = residual.metrics()[0]
    last = next(entry for entry in residual.metrics() if entry["step"] == 60)
    assert first["step"] == 0
    assert first["selection"]["recon"] == pytest.approx(closed_form["selection"]["recon"], rel=1e-6)
    assert last["selection"]["recon"] < 0.9 * first["selection"]["recon"]
    assert residual.best_selection()["selection"]["recon"] <= first["selection"]["recon"]


def test_training_on_tokens_ends_with_the_closed_form_of_the_last_layer(tmp_path: Path) -> None:
    """It is far better than what the gradient reached, and only taken where least squares was the aim."""
    for adapter in ("residual", "mlp"):
        run = trained(tmp_path / adapter, f"adapter={adapter}", "data.train=1000", "train.steps=20")
        *_, gradient, solved = run.metrics()
        assert solved["solved"] is True
        assert solved["selection"]["recon"] < 0.9 * gradient["selection"]["recon"]
        assert run.best_selection() == solved
    for name, losses in (("other", "{cosine: 1}"), ("contrastive", "{recon: 1, contrast: 0.1}")):
        other = trained(tmp_path / name, f"losses={losses}", "train.steps=4")
        assert not any("solved" in entry for entry in other.metrics())


def test_the_solved_last_layer_has_no_gradient_left(tmp_path: Path) -> None:
    """At the least-squares optimum the gradient of the training objective for that layer vanishes."""
    trainer = trainer_for(narrow(WIDE, f"output={tmp_path / 'run'}", "train.steps=5", "data.train=1000"))
    trainer.train(Run.create(trainer.config))
    inputs = trainer.present(trainer.batches.batch(0), RoundTrip(trainer.bottleneck))
    total: Any = trainer.objective.total(trainer.objective(inputs), {"recon": 1.0})
    adapter: Any = trainer.bottleneck.adapter
    last = adapter.correction.net[-1]
    first = adapter.correction.net[0]
    solved, learnt = torch.autograd.grad(total, [last.weight, first.weight])
    assert float(solved.norm()) < 0.05 * float(learnt.norm())


def test_training_that_only_gets_worse_says_so_and_keeps_the_start(tmp_path: Path) -> None:
    """A learning rate this large soon makes everything worse than the closed form."""
    notes = Notes()
    diverging = ("train.lr=1", "train.warmup=0", "losses={cosine: 1}")
    run = trained(tmp_path / "run", *diverging, progress=notes)
    assert run.best_selection()["step"] == 0
    adapter: Any = Bottleneck.from_pretrained(run.path, table=embedded().table).adapter
    assert float(adapter.correction.net[-1].weight.abs().max()) == 0
    training = run.read_manifest()["training"]
    assert training["best_step"] == 0
    assert training["improved"] is False
    assert training["last_error"] > training["first_error"] == training["best_error"]
    [said] = [note for note in notes.notes if "made nothing better" in note]
    assert f"{training['last_error']:.4g}" in said
    good = trained(tmp_path / "good").read_manifest()["training"]
    assert (good["improved"], good["steps"], good["stopped"]) == (True, 40, "steps")
    assert unimproved(good) is None


def test_early_stop(tmp_path: Path) -> None:
    diverging = ("train.lr=1", "losses.cosine=0.001", "train.patience=2", "train.steps=1000")
    run = trained(tmp_path / "run", *diverging)
    *_, stopped, closing = run.metrics()
    assert stopped["step"] == 20
    assert closing["solved"] is True


def test_seed_decides_everything(tmp_path: Path) -> None:
    one, two = (trained(tmp_path / name, "train.batch_tokens=100") for name in ("one", "two"))
    other = trained(tmp_path / "other", "train.batch_tokens=100", "seed=1")
    assert same(weights(one), weights(two))
    assert not same(weights(one), weights(other))


def test_learning_rate_warms_up_and_decays() -> None:
    config = narrow("train.steps=100", "train.lr=1", "train.warmup=10")
    rates = [learning_rate(step, config.train) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[10] == 1
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] < 0.01


# -- until it has converged ---------------------------------------------------------------------------

CONVERGED = ("train.until=converged", "train.steps=400", "train.check_every=5", "train.patience=100")


def test_training_ends_when_doubling_its_steps_brings_little(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *CONVERGED)
    training = run.read_manifest()["training"]
    assert (training["stopped"], training["converged"]) == ("converged", True)
    steps, errors = zip(*training["curve"], strict=True)
    assert list(steps) == [5 * 2**k for k in range(len(steps))]
    assert training["steps"] == steps[-1] < 400
    *went_on, last = [1 - after / before for before, after in pairwise(errors)]
    assert last <= GAIN < min(went_on, default=1)
    assert f"converged: selection error {errors[0]:.4g} at 5" in str(told(training))
    cut = trained(tmp_path / "cut", *CONVERGED, "train.steps=5").read_manifest()["training"]
    assert (cut["stopped"], cut["converged"]) == ("steps", False)
    assert cut["curve"] == training["curve"][:1]


@pytest.mark.parametrize(
    ("trials", "converged"),
    [
        ([], None),
        ([(50, 0.5)], None),
        ([(50, 0.5), (60, 0.5)], None),  # less than a doubling says nothing
        ([(50, 0.5), (100, 0.48)], False),
        ([(50, 0.5), (100, 0.495)], True),
        ([(50, 0.5), (100, 0.6)], True),
        ([(50, 0.5), (200, 0.485)], True),  # two doublings
        ([(50, 0.5), (200, 0.475)], False),
        ([(50, 0.5), (100, math.nan)], True),
    ],
)
def test_a_doubling_of_the_steps_decides(trials: list[tuple[int, float]], converged: bool | None) -> None:
    assert Course(trials=trials).converged is converged


def test_a_resumed_training_converges_to_the_same_weights(tmp_path: Path) -> None:
    settings = ("compressor=autoencoder", *CONVERGED, "train.save_every=3", "train.batch_tokens=64")
    config = narrow(*settings, f"output={tmp_path / 'cut'}")
    cut = Run.create(config)
    with pytest.raises(KeyboardInterrupt):
        trainer_for(config, progress=CtrlC("Training", 7)).train(cut)
    trainer_for(config).train(cut)
    whole = trained(tmp_path / "whole", *settings)
    assert same(weights(cut), weights(whole))
    assert cut.read_manifest()["training"] == whole.read_manifest()["training"]


def test_the_mean_of_the_weights_is_what_is_measured_and_training_goes_on_from_the_weights() -> None:
    layer = torch.nn.Linear(1, 1)
    mean = Mean(dict(layer.named_parameters()))
    for step, value in enumerate((4.0, 1.0), 1):
        torch.nn.init.constant_(layer.weight, value)
        mean.observe(step)
    with mean.applied(layer):
        assert float(layer.weight) == pytest.approx(4 + (1 - 4) * (LATE + 1) / (2 + LATE))
        torch.nn.init.constant_(layer.weight, 7)
    assert float(layer.weight) == 1


def test_tokens_that_no_prompt_holds_are_trained_on_too(tmp_path: Path) -> None:
    """The closed form of the last layer overfits where it is solved on the training prompts' tokens alone."""
    errors = {}
    for vocabulary in ("all", "seen"):
        few = ("data.train=100", "train.steps=10")
        run = trained(tmp_path / vocabulary, WIDE, f"train.vocabulary={vocabulary}", *few)
        session = Session.open(run.config, Progress(), before=embedded())
        seen = count_tokens(session.prompts(session.data.train), session.table).ids
        asked = count_tokens(session.prompts(session.data.test), session.table)
        unseen = asked.embeds[~torch.isin(asked.ids, seen)][None]
        assert unseen.shape[1] > 20
        bottleneck = session.load_bottleneck(run)
        with torch.no_grad():
            reconstructed = bottleneck(unseen, torch.ones(unseen.shape[:2], dtype=torch.bool))
        errors[vocabulary] = float((reconstructed - unseen).square().mean())
    assert errors["all"] < 0.8 * errors["seen"]


# -- whole prompts and the LLM ------------------------------------------------------------------------


class NextToken(Loss):
    """Cross-entropy of the prompt's own next tokens, read from the reconstructed prompt."""

    name = "test"
    needs_llm = True
    tokenwise = False

    def forward(self, inputs: LossInputs) -> torch.Tensor:
        logits = inputs.llm.head(inputs.llm.student.prompt[:, :-1])
        targets, counted = inputs.ids[:, 1:], inputs.weights[:, 1:] > 0
        loss = torch.nn.functional.cross_entropy(logits[counted], targets[counted])
        self.teacher_has_gradient = inputs.llm.teacher.prompt.requires_grad
        return loss


def test_a_loss_through_the_llm_trains_the_bottleneck_and_leaves_the_llm_alone(tmp_path: Path) -> None:
    few = ("train.steps=4", "train.check_every=2", "train.batch_prompts=4")
    config = narrow(f"output={tmp_path / 'run'}", *few)
    trainer = trainer_for(config, loss=NextToken)
    assert not trainer.fast
    assert trainer.llm is not None
    llm = trainer.llm.model
    before = {k: v.clone() for k, v in llm.state_dict().items()}
    run = Run.create(config)
    trainer.train(run)
    losses = [entry["terms"]["test"]["value"] for entry in run.metrics() if "terms" in entry]
    assert len(losses) == 2
    assert all(p.grad is None for p in llm.parameters())
    assert same(before, llm.state_dict())
    adapter: Any = trainer.bottleneck.adapter
    assert adapter.correction.net[0].weight.grad is not None
    loss: Any = trainer.objective.losses["test"]
    assert loss.teacher_has_gradient is False


# -- trouble ------------------------------------------------------------------------------------------


class NanAtStepFive(Loss):
    """Becomes NaN after a few steps."""

    name = "test"
    tokenwise = True
    calls = 0

    def forward(self, inputs: LossInputs) -> torch.Tensor:
        type(self).calls += torch.is_grad_enabled()
        error = inputs.mean((inputs.reconstruction - inputs.original).square().mean(-1))
        return error * (math.nan if self.calls == 6 else 1.0)


def test_nan_stops_the_run_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    NanAtStepFive.calls = 0
    with pytest.raises(TrainingError, match="step 5") as caught:
        trained(tmp_path / "run", loss=NanAtStepFive)
    assert "--resume" in caught.value.remedy
    state = Run(tmp_path / "run").state.load()
    assert state is not None
    assert state[1]["step"] == 5
    assert all(t.isfinite().all() for t in state[0].values())
    assert not Run(tmp_path / "run").trained


def test_a_full_disk_is_said_and_leaves_a_run_that_goes_on(tmp_path: Path, invoke: Invoke) -> None:
    """The resumable state does not fit."""
    command = ("train", "--no-eval", "--output", "run")
    with full_disk(200_000):
        done = invoke(*command, *settings_args([*SMALL, "train.save_every=5"]))
    assert done.code == 1
    assert "Cannot write run/state/state.safetensors" in done.err
    assert "--resume" in done.err
    assert "Traceback" not in done.err
    assert not list((tmp_path / "run" / "state").iterdir())
    assert invoke(*command, "--quiet", "--resume").code == 0


# -- kill, interrupt, resume --------------------------------------------------------------------------


def test_resuming_with_other_settings_is_refused(tmp_path: Path, invoke: Invoke) -> None:
    run = Run.create(narrow(f"output={tmp_path / 'run'}"))
    other = ("--compressor", "random_projection", "--seed", "4")
    refused(invoke("train", "--resume", "--output", str(run.path), *other), "compressors: ", "seed")


# -- which parameters are trained ---------------------------------------------------------------------


@pytest.fixture
def keeps_its_bias(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """`learned_linear` as it would be if its `fit` froze the bias."""
    cls = load_plugins().get("compressor", "learned_linear")
    fit = cls.fit

    def fit_and_freeze(self: Any, stats: TokenStats) -> None:
        fit(self, stats)
        self.bias.requires_grad_(False).fill_(0.25)

    with monkeypatch.context() as patch:
        patch.setattr(cls, "fit", fit_and_freeze)
        yield patch


LEARNED = ("compressor=learned_linear", "train.steps=20", "train.save_every=5")


def test_what_a_component_froze_stays_frozen_after_a_resume_and_an_init(
    keeps_its_bias: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = trained(tmp_path / "whole", *LEARNED)
    config = narrow(*LEARNED, f"output={tmp_path / 'cut'}")
    cut = Run.create(config)
    with pytest.raises(KeyboardInterrupt):
        trainer_for(config, progress=CtrlC("Training", 7)).train(cut)
    state = cut.state.load()
    assert state is not None
    assert {"compressor.bias"} <= set(state[1]["frozen"])
    assert "optimizer.compressor.weight.exp_avg" in state[0]
    trainer_for(config).train(cut)
    assert same(weights(cut), weights(whole))
    keeps_its_bias.undo()
    after = trained(tmp_path / "after", *LEARNED, f"init={whole.path}")
    assert torch.equal(
        weights(after)["compressor.bias"], torch.full_like(weights(whole)["compressor.bias"], 0.25)
    )
    third = trained(tmp_path / "third", *LEARNED, f"init={after.path}", "losses={cosine: 1}")
    assert torch.equal(weights(third)["compressor.bias"], weights(whole)["compressor.bias"])
    assert not torch.equal(weights(third)["compressor.weight"], weights(whole)["compressor.weight"])


def test_learning_rate_factors_by_part(tmp_path: Path) -> None:
    few = (
        "compressor=learned_linear",
        "adapter=mlp",
        "losses={cosine: 1}",
        "train.steps=4",
        "train.check_every=4",
    )
    start, plain, slow, frozen = (
        weights(trained(tmp_path / name, *few, *more))
        for name, more in {
            "start": ["train.steps=0"],
            "plain": [],
            "slow": ["train.lr_factors.compressor=0.01"],
            "frozen": ["train.lr_factors.compressor=0"],
        }.items()
    )

    def moved(one: dict[str, torch.Tensor], name: str) -> float:
        return float((one[name] - start[name]).abs().max())

    assert moved(frozen, "compressor.weight") == 0
    assert 0 < moved(slow, "compressor.weight") < 0.1 * moved(plain, "compressor.weight")
    assert moved(frozen, "adapter.net.0.weight") > 0.5 * moved(plain, "adapter.net.0.weight")
    with pytest.raises(ConfigError, match="lr_factors"):
        narrow("train.lr_factors.los=1")


# -- several processes --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["train.batch_tokens=200"],  # draws
        ["data.train=100", "train.steps=10"],  # all tokens, dealt out
        ["losses={answer_ce: 1, recon: 1}", "train.steps=3", "train.batch_prompts=5", "data.train=40"],
    ],
    ids=["draws", "tokens", "answers"],
)
def test_two_processes_train_one_run(settings: list[str], tmp_path: Path) -> None:
    """The run of one process that has all of each batch, but for the order in which float32 is summed."""
    run = tmp_path / "run"
    args = ["train", "--no-eval", "--json", "--output", str(run), *settings_args([*SMALL, NARROW, *settings])]
    shown = json.loads(launched(*args))  # one process speaks, and speaks JSON
    assert shown["run"] == str(run)
    manifest = Run(run).read_manifest()
    assert manifest["processes"] == 2
    alone = trained(tmp_path / "alone", *settings)
    for name, value in weights(Run(run)).items():
        torch.testing.assert_close(value, weights(alone)[name], rtol=1e-2, atol=5e-4)
    ours, theirs = ([e["loss"] for e in one.metrics() if "loss" in e][-1] for one in (Run(run), alone))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_ctrl_c_while_the_last_layer_is_solved_is_heeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = narrow("train.save_every=20", f"output={tmp_path / 'run'}")
    run = Run.create(config)
    trainer = trainer_for(config)
    solve = trainer.bottleneck.adapter.solve_last_layer

    def interrupted(*given: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        solve(*given)

    monkeypatch.setattr(trainer.bottleneck.adapter, "solve_last_layer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(run)
    assert not run.trained
    trainer_for(config).train(run)
    assert same(weights(run), weights(trained(tmp_path / "whole")))


def test_a_last_layer_without_a_solution_stays_as_trained(tmp_path: Path) -> None:
    """Hidden units that a far too high learning rate has saturated are constant: nothing can be solved."""
    notes = Notes()
    run = trained(tmp_path / "run", "adapter=mlp", "adapter.depth=2", "train.lr=3", progress=notes)
    assert any("no solution" in note for note in notes.notes)
    assert run.trained
    assert not any("solved" in entry for entry in run.metrics())

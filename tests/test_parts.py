"""A batch worked off in parts, by processes, or padded otherwise has the gradient of the whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import Notes, embedded, small_config
from pairs import Pairs
from stage1.bottleneck.batches import Batch
from stage1.plugins import load_plugins, resolve
from stage1.plugins.interfaces import Loss
from stage1.plugins.resolution import ResolvedComponent
from stage1.plugins.tensors import Code, Embedded, LossInputs
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.session import Session
from stage1.training.inputs import RoundTrip, counterparts
from stage1.training.step import Stepper
from stage1.training.trainer import Trainer
from trainings import trained, trainer_for, weights

EVERY = (
    "losses={recon: 1, cosine: 1, norm: 1, prompt_ppl: 1, kl: 1, hidden: 1, answer_ce: 1, answer_kl: 1}",
    "compressor=learned_linear",
    "adapter=mlp",
    "compressor.ratio=4",
    "train.batch_prompts=8",
    "train.check_every=100",
    "data.train=60",
    "data.selection=10",
)


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    """All built-in losses at once, started at the closed forms."""
    made = trainer_for(small_config(*EVERY))
    made.bottleneck.fit(made.stats, made.session.table)
    return made


class Recorded(Stepper):
    """Keeps the gradients of each term by itself instead of making the step."""

    def gradients(self, batch: Batch, parts: int, term: str) -> Tensor:
        self.parts = parts
        only = dict.fromkeys(self.objective.losses, 0.0) | {term: 1.0}
        values = self._in_parts(batch, lambda *piece: self._backward(*piece, weights=only))
        self.value = values[term]
        found = [p.grad.flatten() for p in self.bottleneck.parameters() if p.grad is not None]
        return torch.cat(found).clone()


@pytest.mark.parametrize(
    "term", ["recon", "cosine", "norm", "prompt_ppl", "kl", "hidden", "answer_ce", "answer_kl"]
)
def test_parts_have_the_gradient_of_the_whole(trainer: Trainer, term: str) -> None:
    stepper = Recorded(trainer)
    batch = trainer.batches.batch(0)
    whole, value = stepper.gradients(batch, 1, term), stepper.value
    assert float(whole.norm()) > 0
    for parts in (2, 8):
        ours = stepper.gradients(batch, parts, term)
        assert stepper.value == pytest.approx(value, rel=1e-5)
        assert float((ours - whole).norm()) < 1e-6 * float(whole.norm()), term


def test_token_wise_terms_read_the_whole_vocabulary_beside_the_prompts(trainer: Trainer) -> None:
    """What the bottleneck knows of the other tokens would be forgotten otherwise."""
    batch, cross = trainer.batches.batch(0), RoundTrip(trainer.bottleneck)
    tokens = batch.tokens
    assert tokens is not None
    assert len(set(tokens.ids.flatten().tolist()) - set(batch.ids.flatten().tolist())) > 100
    both, prompts = (
        trainer.objective(*seen)
        for seen in (trainer.present.both(batch, cross), (trainer.present(batch, cross),))
    )
    with torch.no_grad():
        error = (trainer.bottleneck(tokens.embeds, tokens.cross) - tokens.embeds).square().mean()
    assert float(both["recon"]) == pytest.approx(float(error) / trainer.stats.variance, rel=1e-4)
    assert float(both["recon"]) != pytest.approx(float(prompts["recon"]), rel=1e-2)
    assert {name for name in both if torch.equal(both[name], prompts[name])} == {
        name for name, loss in trainer.objective.losses.items() if not loss.tokenwise
    }


@pytest.mark.parametrize(
    ("of", "room", "settings", "near"),
    [("recon", 300, (), 1e-4), ("answer_ce", 3, EVERY, 1e-5)],
    ids=["tokens", "prompts"],
)
def test_out_of_memory_in_the_middle_of_training_changes_nothing(
    of: str, room: int, settings: tuple[str, ...], near: float, tmp_path: Path
) -> None:
    """Tokens side by side, or prompts with answers, whose lengths differ from prompt to prompt."""

    class Hungry(load_plugins().get("loss", of)):  # type: ignore[misc]
        name = "hungry"
        most = 10**6

        def forward(self, inputs: LossInputs) -> Tensor:
            size = inputs.ids.shape[1 if self.tokenwise else 0]
            if size > self.most and torch.is_grad_enabled():
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().forward(inputs)  # type: ignore[no-any-return]

    found = []
    for most in (10**6, room):
        Hungry.most = most
        notes = Notes()
        run = trained(tmp_path / str(most), *settings, "train.steps=3", loss=Hungry, progress=notes)
        found.append(weights(run))
        assert any("Out of memory: working in 2 parts" in note for note in notes.notes) == (most == room)
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=100 * near, atol=near)


# -- padding ------------------------------------------------------------------------------------------


def test_no_query_row_is_masked_whole_and_the_states_are_those_of_left_padding() -> None:
    config = small_config(*EVERY)
    made = trainer_for(config, session=Session.open(config, Progress()))  # hooks on a model of its own
    batch = made.batches.batch(0)
    assert made.llm is not None
    assert batch.answers is not None
    masks: list[Any] = []
    for layer in made.llm.model.model.layers:
        layer.register_forward_pre_hook(
            lambda _, __, given: masks.append(given["attention_mask"]), with_kwargs=True
        )
    prompts = Embedded(batch.embeds, batch.attention)
    assert bool(batch.attention[:, 0].all())
    assert not bool(batch.attention.all())
    states = made.llm(prompts, batch.answers)
    assert masks
    for mask in masks:
        assert mask is None or bool((mask if mask.dtype == torch.bool else mask == 0).any(-1).all())
    left = batch.attention.long().argsort(dim=1, stable=True)
    attention = torch.cat([batch.attention.gather(1, left), batch.answers.mask], 1)
    embeds = torch.cat([batch.embeds.take_along_dim(left[..., None], 1), batch.answers.embeds], 1)
    wanted = made.llm.model.model(
        inputs_embeds=embeds,
        attention_mask=attention.long(),
        position_ids=(attention.long().cumsum(1) - 1).clamp(min=0),
    ).last_hidden_state
    length = batch.ids.shape[1]
    answering = wanted[:, length - 1 : -1][batch.answers.mask]
    torch.testing.assert_close(states.answering[batch.answers.mask], answering, rtol=0, atol=1e-4)
    torch.testing.assert_close(states.final, wanted[:, length - 1], rtol=0, atol=1e-4)
    there = attention[:, :length]
    torch.testing.assert_close(states.prompt[batch.attention], wanted[:, :length][there], rtol=0, atol=1e-4)
    moved = made.llm(Embedded(embeds[:, :length], there), batch.answers)  # either padding gives the same
    assert torch.equal(moved.final, states.final)


# -- codes of another length --------------------------------------------------------------------------


def test_counterparts_in_prompts_of_another_length() -> None:
    cross = torch.tensor([[0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [0, 0, 1, 0, 0, 0]]).bool()
    attention = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]]).bool()
    # one raw, two vectors, two raw; three vectors; two raw, one vector
    reconstructed = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]).bool()
    nothing = torch.zeros(3, 6)
    places = counterparts(Batch(nothing, nothing, attention, cross, nothing), reconstructed)
    assert places.tolist() == [[0, -1, -1, 2, 3, 4], [-1, -1, -1, -1, 2, -1], [0, 1, 2, -1, -1, -1]]


class Halves(Pairs):
    """Trained weights behind the mean of every two neighbours."""

    name = "halves"

    def __init__(self, config: Any, embed_dim: int) -> None:
        super().__init__(config, embed_dim)
        self.linear = torch.nn.Linear(embed_dim, embed_dim)
        torch.nn.init.eye_(self.linear.weight)

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        code = super().forward(embeds, mask)
        return code._replace(vectors=self.linear(code.vectors))


@pytest.mark.parametrize("scope", ["prompt", "context"])
def test_a_code_of_another_length_is_trained_by_what_follows_it(scope: str, tmp_path: Path) -> None:
    settings = [s for s in EVERY if not s.startswith(("losses", "compressor"))]
    config = small_config(
        *settings,
        "losses={kl: 1, answer_kl: 1}",
        f"scope={scope}",
        "train.steps=12",
        "train.lr=1e-2",
        "train.check_every=4",
        f"output={tmp_path / 'run'}",
    )
    halves = ResolvedComponent("compressor", Halves, Halves.Config())
    resolved = resolve(config, load_plugins())._replace(compressors=[halves])
    made = Trainer(resolved, Session.open(config, Progress(), before=embedded()))
    inputs = made.present(made.batches.batch(0), RoundTrip(made.bottleneck))
    assert inputs.llm.reconstructed.embeds.shape[1] < inputs.original.shape[1]
    per_prompt = inputs.llm.compared.sum(1)
    assert bool((per_prompt == 1).all()) if scope == "prompt" else bool((per_prompt > 5).all())
    run = Run.create(config)
    with pytest.MonkeyPatch.context() as patch:  # the class is no plugin of any package
        patch.setattr(load_plugins(), "owner", lambda _: ("tests", "0"))
        made.train(run)
    first, *_, last = run.metrics()
    assert last["selection"]["objective"] < 0.9 * first["selection"]["objective"]


# -- what a loss says of itself ------------------------------------------------------------------------


def test_flags_imply_each_other() -> None:
    class Forced(Loss):
        tokenwise = True
        teacher_forced = True

    assert (Forced.needs_llm, Forced.tokenwise) == (True, False)
    assert (Loss.needs_llm, Loss.tokenwise, Loss.requires_same_length) == (False, False, True)


class CodeEnergy(Loss):
    """A penalty on what crosses: the mean square of the code."""

    name = "energy"
    tokenwise = True
    requires_same_length = False

    def forward(self, inputs: LossInputs) -> Tensor:
        return inputs.mean(inputs.code.vectors.square().mean(-1))


def test_a_penalty_on_the_code_trains_the_compressor_on_the_fast_path(tmp_path: Path) -> None:
    config = small_config(
        "compressor=learned_linear", "adapter=codebook", "train.steps=10", f"output={tmp_path / 'run'}"
    )
    made = trainer_for(config, loss=CodeEnergy)
    assert made.fast
    run = Run.create(config)
    made.train(run)
    entries = [e for e in run.metrics() if "loss" in e]
    made.bottleneck.fit(made.stats, made.session.table)
    before = made.present(made.batches.batch(0), RoundTrip(made.bottleneck))
    assert entries[-1]["loss"] < float(CodeEnergy(None)(before).detach())


# -- what is trained ----------------------------------------------------------------------------------


def test_where_no_gradient_comes_through_the_run_ends_with_its_start_and_says_so(tmp_path: Path) -> None:
    notes = Notes()
    run = trained(tmp_path / "run", "compressor=learned_linear", "adapter=codebook", progress=notes)
    assert run.trained
    assert [note for note in notes.notes if "Nothing to train" in note and "'codebook'" in note]
    training = run.read_manifest()["training"]
    assert (training["steps"], training["stopped"], training["improved"]) == (0, "nothing to train", False)

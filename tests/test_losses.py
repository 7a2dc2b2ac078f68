"""The losses that use the frozen LLM, each against a slow, obvious loop over prompts and positions."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from conftest import CtrlC, small_config
from stage1.bottleneck.batches import Batch, collate, collate_answers
from stage1.bottleneck.splice import splice
from stage1.errors import ConfigError
from stage1.llm.model import load_llm
from stage1.llm.states import FrozenLLM
from stage1.plugins import load_plugins, resolve
from stage1.plugins.interfaces import Loss
from stage1.plugins.tensors import Answers, Embedded, LLMOutputs, LossInputs, States
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.session import Session
from stage1.training.objective import Objective
from stage1.training.trainer import Trainer
from trainings import same, trainer_for, weights

LOSSES: dict[str, dict[str, Any]] = {
    "prompt_ppl": {},
    "kl": {"temperature": 2.0},
    "hidden": {"layers": [3, 1]},
    "answer_ce": {},
    "answer_kl": {"tokens": 2, "temperature": 3.0},
    "norm": {},
}
FIELDS = ("ids", "embeds", "attention", "cross", "weights")
ZERO_WHEN_PERFECT = ("kl", "hidden", "answer_kl", "norm")


class Case(NamedTuple):
    """A padded batch, and the LLM that reads it."""

    model: Any
    batch: Batch
    ordinary: Tensor  # [B, L]
    noise: Tensor  # [B, L, D]

    def reconstruction(self, noise: float = 1.0) -> Tensor:
        return (self.batch.embeds + noise * self.noise).requires_grad_()

    def inputs(self, reconstructed: Tensor, llm: FrozenLLM, row: int | None = None) -> LossInputs:
        """What training gives the losses; with `row`, only that prompt counts."""
        batch = self.batch
        chosen = torch.ones(len(batch.ids), 1, dtype=torch.bool) if row is None else one_hot(row, batch)
        original = Embedded(batch.embeds, batch.attention)
        spliced = splice(original, batch.cross, lambda *_: (reconstructed, batch.cross))
        assert batch.answers is not None
        answers = batch.answers._replace(mask=batch.answers.mask & chosen)
        outputs = LLMOutputs(llm, llm.head, original, spliced, self.ordinary & chosen, answers)
        return LossInputs(batch.embeds, reconstructed, batch.weights * chosen, batch.ids, 1.0, outputs)


def one_hot(row: int, batch: Batch) -> Tensor:
    return (torch.arange(len(batch.ids)) == row)[:, None]


def build_loss(name: str, **options: Any) -> Loss:
    cls = load_plugins().get("loss", name)
    loss: Loss = cls(cls.Config(**(options or LOSSES[name])))
    return loss


def frozen(case: Case, loss: Loss, **options: Any) -> FrozenLLM:
    return FrozenLLM(case.model, layers=loss.layers or (), last=loss.layers is None, **options)


@pytest.fixture
def case(session: Session, model: Any) -> Case:
    """Three prompts of different lengths, a special token in the middle of one of them."""
    questions = session.data.train[:40]
    prompts = session.prompts(questions)
    order = sorted(range(40), key=lambda i: len(prompts[i].ids))
    picked = [order[0], order[20], order[-1]]
    chosen = [prompts[i] for i in picked]
    eos = session.tokenizer.eos_token_id
    ids, cross = list(chosen[1].ids), list(chosen[1].cross)
    ids[7], cross[7] = eos, False
    chosen[1] = chosen[1]._replace(ids=ids, cross=cross)
    batch = collate(chosen, session.table, torch.ones(len(session.table)))
    answers = session.answer_ids([questions[i] for i in picked], chosen)
    batch = batch._replace(answers=collate_answers(answers, session.table))
    ordinary = batch.attention & ~torch.isin(batch.ids, session.special)
    assert len({len(prompt.ids) for prompt in chosen}) == 3
    assert len({len(answer) for answer in answers}) > 1
    noise = torch.randn(batch.embeds.shape, generator=torch.Generator().manual_seed(1))
    scale = 1.5 * batch.embeds[batch.attention].std()
    return Case(model, batch, ordinary, scale * noise)


# -- the slow, obvious references: one prompt at a time, unpadded, from the model's own outputs -------------


class Reading(NamedTuple):
    """What the model says of one prompt followed by its answer, and what it says of the original."""

    ids: list[int]
    ordinary: list[int]  # positions
    answer: list[int]
    logits: Tensor  # [L + A, V]
    goal: Tensor  # [L + A, V] on the original
    states: tuple[Tensor, ...]  # [L, D] after each layer
    wanted: tuple[Tensor, ...]  # on the original
    norms: Tensor  # [N, 2] of each crossing vector, reconstructed and original


def readings(case: Case, reconstructed: Tensor) -> Iterator[Reading]:
    batch = case.batch
    assert batch.answers is not None
    for row, attends in enumerate(batch.attention):
        crosses, embeds = batch.cross[row], batch.embeds[row]
        raw = batch.answers.embeds[row][batch.answers.mask[row]]

        def run(embeds: Tensor, attends: Tensor = attends, raw: Tensor = raw) -> Any:
            whole = torch.cat([embeds[attends], raw])[None]
            return case.model(inputs_embeds=whole, output_hidden_states=True)

        ours = run(torch.where(crosses[:, None], reconstructed[row], embeds))
        with torch.no_grad():
            goal = run(embeds)
        length = int(attends.sum())
        yield Reading(
            batch.ids[row][attends].tolist(),
            case.ordinary[row][attends].nonzero().flatten().tolist(),
            batch.answers.ids[row][batch.answers.mask[row]].tolist(),
            ours.logits[0],
            goal.logits[0],
            tuple(h[0, :length] for h in ours.hidden_states),
            tuple(h[0, :length] for h in goal.hidden_states),
            torch.stack([reconstructed[row][crosses].norm(dim=1), embeds[crosses].norm(dim=1)], dim=1),
        )


def divergence(r: Reading, i: int, temperature: float) -> Tensor:
    guess, wanted = (log_softmax(x[i] / temperature, -1) for x in (r.logits, r.goal))
    return temperature**2 * kl_div(guess, wanted, log_target=True, reduction="sum")


def squared_errors(r: Reading) -> Iterator[Tensor]:
    for layer in (1, 3):
        mean = torch.stack([r.wanted[layer][i] for i in r.ordinary]).mean(0)
        spread = torch.stack([(r.wanted[layer][i] - mean).square().sum() for i in r.ordinary]).mean()
        yield from ((r.states[layer][i] - r.wanted[layer][i]).square().sum() / spread for i in r.ordinary)


def surprise(r: Reading, i: int, token: int) -> Tensor:
    return -log_softmax(r.logits[i], -1)[token]


SLOW: dict[str, Callable[[Reading], Iterable[Tensor]]] = {
    "prompt_ppl": lambda r: [surprise(r, i - 1, r.ids[i]) for i in r.ordinary if i],
    "kl": lambda r: [divergence(r, i, 2.0) for i in r.ordinary],
    "hidden": squared_errors,
    "answer_ce": lambda r: [surprise(r, len(r.ids) - 1 + k, token) for k, token in enumerate(r.answer)],
    "answer_kl": lambda r: [divergence(r, len(r.ids) - 1 + k, 3.0) for k in range(min(2, len(r.answer)))],
    "norm": lambda r: [(ours.log() - wanted.log()).square() for ours, wanted in r.norms],
}
"""The terms of a prompt whose mean over all prompts the loss is."""


def gradient(value: Tensor, of: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, of)
    return found


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_equal_the_obvious_loop(name: str, case: Case) -> None:
    """Padding and special tokens are in the batch, and not in the loop."""
    loss, reconstructed = build_loss(name), case.reconstruction()
    ours = loss(case.inputs(reconstructed, frozen(case, loss)))
    slow = torch.stack([term for r in readings(case, reconstructed) for term in SLOW[name](r)]).mean()
    assert slow.item() > 0.01
    assert ours.item() == pytest.approx(slow.item(), rel=1e-5, abs=1e-5)
    wanted = gradient(slow, reconstructed)
    torch.testing.assert_close(
        gradient(ours, reconstructed), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max())
    )


@pytest.mark.parametrize("name", ZERO_WHEN_PERFECT)
def test_zero_when_the_reconstruction_is_perfect(name: str, case: Case) -> None:
    loss = build_loss(name)
    value = loss(case.inputs(case.reconstruction(0), frozen(case, loss)))
    assert value.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_prompt_alone_has_the_value_it_has_in_a_padded_batch(name: str, case: Case) -> None:
    loss, reconstructed = build_loss(name), case.reconstruction()
    llm = frozen(case, loss)
    for row, attends in enumerate(case.batch.attention):
        together = loss(case.inputs(reconstructed, llm, row=row))
        length = int(attends.sum())
        assert case.batch.answers is not None
        own = slice(row, row + 1)
        prompt = {name: getattr(case.batch, name)[own, :length] for name in FIELDS}
        answers = Answers(*(field[own] for field in case.batch.answers))
        batch = case.batch._replace(**prompt, answers=answers)
        lonely = Case(case.model, batch, case.ordinary[own, :length], case.noise[own, :length])
        alone = loss(lonely.inputs(reconstructed[own, :length], llm))
        assert float(alone) == pytest.approx(float(together), rel=1e-5, abs=1e-6)


def test_hidden_is_one_at_the_mean_state(case: Case) -> None:
    loss = build_loss("hidden", layers=[2])
    inputs = case.inputs(case.reconstruction(), frozen(case, loss))
    states, here = inputs.llm.teacher.layers[2], case.ordinary[..., None]
    mean = ((states * here).sum(1, keepdim=True) / here.sum(1, keepdim=True)).expand_as(states)
    inputs.llm.student = States(None, {2: mean}, case.batch.attention.sum(1))
    assert float(loss(inputs)) == pytest.approx(1, rel=1e-5)


def test_norm_knows_only_length_and_survives_zero_vectors(case: Case) -> None:
    loss, embeds = build_loss("norm"), case.batch.embeds
    llm = frozen(case, loss)
    assert float(loss(case.inputs(-2 * embeds, llm))) == pytest.approx(0.6931**2, rel=1e-3)
    nothing = torch.zeros_like(embeds, requires_grad=True)
    value = loss(case.inputs(nothing, llm))
    assert value.isfinite()
    assert gradient(value, nothing).isfinite().all()


# -- the frozen LLM -----------------------------------------------------------------------------------------


def counted(module: Any) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.fixture
def fresh(session: Session) -> Any:
    """A model of this test's own, to hang hooks on."""
    return load_llm(session.model.folder, dtype="auto", device=session.device)


def test_no_gradient_reaches_the_llm(case: Case) -> None:
    config = small_config(*(f"losses.{name}=1" for name in LOSSES))
    objective, reconstructed = Objective(resolve(config, load_plugins())), case.reconstruction()
    llm = FrozenLLM(case.model, layers=objective.layers, last=objective.reads_last_states)
    values = objective(case.inputs(reconstructed, llm))
    assert set(values) >= set(LOSSES)
    total: Any = objective.total(values, objective.weights(0))
    total.backward()
    llm.assert_frozen()
    assert reconstructed.grad is not None
    assert float(reconstructed.grad.norm()) > 0
    # No gradient of the other losses reaches positions that do not cross either; `recon` sees them weigh 0.
    assert float(reconstructed.grad[~case.batch.cross].abs().max()) == 0


def test_hidden_runs_only_the_layers_it_reads(case: Case, fresh: Any) -> None:
    case, loss = case._replace(model=fresh), build_loss("hidden", layers=[2])
    last_read, next_one = (counted(fresh.model.layers[k]) for k in (1, 2))
    reconstructed = case.reconstruction()
    gradient(loss(case.inputs(reconstructed, frozen(case, loss))), reconstructed)
    assert len(last_read) == 2  # the student and the teacher
    assert next_one == []


def test_hidden_beside_a_loss_that_reads_the_last_states_is_the_same(case: Case) -> None:
    loss, reconstructed = build_loss("hidden"), case.reconstruction()
    short = loss(case.inputs(reconstructed, frozen(case, loss)))
    whole = loss(case.inputs(reconstructed, FrozenLLM(case.model, layers=loss.layers or (), last=True)))
    assert float(short) == float(whole)


def test_a_layer_that_the_model_lacks_is_refused(case: Case) -> None:
    with pytest.raises(ConfigError, match="no layer 5; choose from 1 to 4"):
        frozen(case, build_loss("hidden", layers=[2, 5]))


@pytest.mark.parametrize(
    "options", ["hidden.layers=[]", "hidden.layers=[0]", "hidden.layers=[2, 2]", "kl.temperature=0"]
)
def test_options_that_make_no_sense_are_refused(options: str) -> None:
    with pytest.raises(ConfigError, match=r"layers|temperature"):
        resolve(small_config(f"losses.{options}"), load_plugins())


def test_states_are_computed_once_for_all_losses(case: Case, fresh: Any) -> None:
    case = case._replace(model=fresh)
    calls = counted(fresh.model)
    inputs = case.inputs(case.reconstruction(), FrozenLLM(fresh, layers=[1, 3]))
    for name in LOSSES:
        build_loss(name)(inputs)
    assert len(calls) == 2  # the student and the teacher


@pytest.mark.parametrize("name", ["prompt_ppl", "hidden"])
def test_checkpointing_gives_equal_gradients(name: str, case: Case, fresh: Any) -> None:
    case, loss, reconstructed = case._replace(model=fresh), build_loss(name), case.reconstruction()
    calls = counted(fresh.model.layers[0].self_attn)
    plain = gradient(loss(case.inputs(reconstructed, frozen(case, loss))), reconstructed)
    once = len(calls)
    again = gradient(loss(case.inputs(reconstructed, frozen(case, loss, checkpointing=True))), reconstructed)
    assert len(calls) == 2 * once + 1  # the student's activations were computed again
    torch.testing.assert_close(again, plain, rtol=0, atol=1e-6 * float(plain.abs().max()))


def test_checkpointing_leaves_generation_alone(case: Case, fresh: Any) -> None:
    """The same model answers the selection questions, and needs its cache for that."""
    prompt = {"inputs_embeds": case.batch.embeds, "attention_mask": case.batch.attention.long()}
    options = {"max_new_tokens": 12, "do_sample": False, "use_cache": True}
    before = fresh.generate(**prompt, **options)
    loss = build_loss("prompt_ppl")
    loss(case.inputs(case.reconstruction(), frozen(case._replace(model=fresh), loss, checkpointing=True)))
    assert torch.equal(fresh.generate(**prompt, **options), before)


# -- in training --------------------------------------------------------------------------------------------

FEW = (
    "train.steps=4",
    "train.check_every=2",
    "train.save_every=1",
    "train.batch_prompts=4",
    "train.check_questions=4",
    "train.check_prompts=4",
    "data.train=40",
)


def trainer(path: Path, *settings: str, progress: Progress | None = None) -> tuple[Trainer, Run]:
    config = small_config(f"output={path}", *settings)
    run = Run(path) if path.exists() else Run.create(config)
    return trainer_for(config, progress=progress), run


def test_a_run_with_these_losses_and_a_chain_resumes_bit_for_bit(tmp_path: Path) -> None:
    settings = (*FEW, *(f"losses.{name}=auto" for name in LOSSES), "losses.hidden.layers=[1, 3]")
    settings += ("compressors=[{name: learned_linear, ratio: 4}, {name: rvq, stages: 2, bits: 4}]",)
    whole, run = trainer(tmp_path / "whole", *settings)
    whole.train(run)
    stopped, other = trainer(tmp_path / "stopped", *settings, progress=CtrlC("Training", 1))
    with pytest.raises(KeyboardInterrupt):
        stopped.train(other)
    resumed, other = trainer(tmp_path / "stopped", *settings)
    resumed.train(other)
    assert same(weights(run), weights(other))
    assert run.metrics() == other.metrics()
    assert set(run.metrics()[-1]["terms"]) >= set(LOSSES)


def test_learned_linear_and_its_adapter_improve_together(tmp_path: Path) -> None:
    pair, run = trainer(tmp_path / "run", "compressor=learned_linear", "adapter=mlp", "losses.norm=0.01")
    assert pair.fast  # `norm` looks at one token at a time
    assert pair.llm is None
    compressor: Any = pair.bottleneck.compressor
    compressor.fit(pair.stats)
    start = compressor.weight.detach().clone()
    pair.train(run)
    first, *_, last = run.metrics()
    assert last["selection"]["recon"] < 0.9 * first["selection"]["recon"]
    assert not torch.allclose(compressor.weight, start, atol=1e-3)


# -- what all prompts begin with ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_what_is_shared_in_front_changes_neither_value_nor_gradient(case: Case, name: str) -> None:
    """The LLM reads examples once; every prompt behind them gets the states that it would have had."""
    loss = build_loss(name)
    front = 2.0 * case.batch.embeds[1, :5]
    length, rows = len(front), len(case.batch.ids)
    behind = [torch.cat([front.expand(rows, -1, -1), part], 1) for part in (case.batch.embeds, case.noise)]
    no = torch.zeros(rows, length, dtype=torch.bool)
    ids, weights = case.batch.ids, case.batch.weights
    longer = case.batch._replace(
        ids=torch.cat([no.to(ids.dtype), ids], 1),
        weights=torch.cat([no.to(weights.dtype), weights], 1),
        embeds=behind[0],
        attention=torch.cat([~no, case.batch.attention], 1),
        cross=torch.cat([no, case.batch.cross], 1),
    )
    whole = Case(case.model, longer, torch.cat([no, case.ordinary], 1), behind[1])
    found = []
    for one, shared in ((whole, front[:0]), (case, front)):
        llm = frozen(one, loss)
        llm.share(shared)
        reconstructed = one.reconstruction()
        value = loss(one.inputs(reconstructed, llm))
        found.append((value.detach(), gradient(value, reconstructed)[one.batch.cross]))
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)

"""The conformance suite of losses, on the embedded model and prompts that it understands."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple
from unittest import SkipTest

import torch
from torch import Tensor

from stage1.bottleneck.batches import Batch, collate
from stage1.config import DataConfig, RunConfig
from stage1.llm.states import FrozenLLM
from stage1.plugins.interfaces import Loss
from stage1.plugins.tensors import Answers, Code, LossInputs
from stage1.progress import Progress
from stage1.session import Session
from stage1.testing.base import expect
from stage1.testing.component import SEED, ComponentSuite
from stage1.testing.sample import poisoned
from stage1.training.inputs import Presenter

AGREE = 1e-4
"""Relative difference between values that should be equal: an LLM adds up more rounding than one product."""


class Setting(NamedTuple):
    """A frozen LLM and padded prompts."""

    model: Any
    batch: Batch  # three prompts of different lengths
    special: Tensor  # [S] ids of special tokens
    variance: float


@cache
def setting() -> Setting:
    """The embedded model and questions of its own data, with different weights."""
    config = RunConfig(data=DataConfig(train=30, selection=1), device="cpu")
    session = Session.open(config, Progress())
    questions = sorted(session.data.train[:30], key=lambda question: len(question.context))[::14]
    weight = torch.rand(len(session.table), generator=torch.Generator().manual_seed(0)) + 0.5
    prompts = session.prompts(questions)
    batch = collate(prompts, session.table, weight, session.answer_ids(questions, prompts))
    variance = float(batch.embeds[batch.cross].var(0, correction=0).mean())
    return Setting(session.model.llm, batch, session.special, variance)


class LossSuite(ComponentSuite):
    """Checks that a loss keeps what `stage1.Loss` promises.

    Derive a class named Test…, give your loss as `component = …`, and run pytest.
    """

    def _fitted(self, seed: int = SEED) -> Loss:
        made: Loss = self._build(seed=seed)
        return made.eval()

    def _results(self, made: Loss, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
        if device != "cpu" and made.needs_llm:
            raise SkipTest("it runs where the LLM does")
        inputs = _inputs(made, setting().batch, _noisy())
        moved = replace(
            inputs,
            original=inputs.original.to(device, dtype),
            reconstruction=inputs.reconstruction.to(device, dtype),
            weights=inputs.weights.to(device),
            ids=inputs.ids.to(device),
        )
        return [_value(made, moved)]

    # -- its value -----------------------------------------------------------------------------------------

    def test_value(self) -> None:
        """A finite scalar, lower for a perfect reconstruction than for the mean embedding everywhere."""
        made, batch = self._fitted(), setting().batch
        mean = batch.embeds[batch.cross].mean(0)
        noisy, perfect, constant = (
            _value(made, _inputs(made, batch, reconstructed))
            for reconstructed in (_noisy(), batch.embeds, mean.expand_as(batch.embeds))
        )
        for value in (noisy, perfect, constant):
            expect(value.shape == (), f"forward returned the shape {tuple(value.shape)}, not a scalar")
            expect(bool(value.isfinite()), "forward returned an infinite value or NaN")
        expect(
            float(perfect) < float(constant),
            f"a perfect reconstruction has the loss {float(perfect):g}, the mean embedding everywhere "
            f"{float(constant):g}; lower has to be better",
        )

    def test_bare_positions(self) -> None:
        """Positions that do not cross (weight 0) and padding do not count, whatever stands there."""
        made, batch = self._fitted(), setting().batch
        padded = batch._replace(
            embeds=poisoned(batch.embeds, batch.attention), ids=batch.ids.where(batch.attention, 7)
        )
        inputs = _inputs(made, padded, _noisy())
        dirty = replace(
            inputs,
            original=poisoned(inputs.original, batch.cross),
            reconstruction=poisoned(inputs.reconstruction, batch.cross),
        )
        expect(
            _agree(_value(made, dirty), _value(made, _inputs(made, batch, _noisy()))),
            "positions of weight 0 count; use inputs.mean(…), or inputs.llm.ordinary for the LLM's states",
        )

    def test_batch_invariance(self) -> None:
        """A mean, not a sum: neither doubling the batch nor the unit of the weights changes it."""
        made, batch = self._fitted(), setting().batch
        value = _value(made, _inputs(made, batch, _noisy()))
        twice = _value(made, _inputs(made, _each(batch, _twice), _twice(_noisy())))
        expect(
            _agree(twice, value), "the same prompts twice have another loss than once; average, do not sum"
        )
        heavier = batch._replace(weights=3 * batch.weights)
        expect(
            _agree(_value(made, _inputs(made, heavier, _noisy())), value),
            "the loss changes with the unit of the weights; divide by their sum, as inputs.mean(…) does",
        )

    def test_tokenwise_promise(self) -> None:
        """A weighted mean over positions, each looked at alone: training may draw tokens from anywhere."""
        made, batch, reconstructed = self._fitted(), setting().batch, _noisy()
        if made.needs_llm or not made.tokenwise:
            raise SkipTest("it does not promise to look at each position alone")
        value = _value(made, _inputs(made, batch, reconstructed))
        order = torch.randperm(batch.ids.numel(), generator=torch.Generator().manual_seed(0))

        def mixed_up(part: Tensor) -> Tensor:
            return part.flatten(0, 1)[order][None]

        shuffled = _each(batch._replace(answers=None), mixed_up)
        mixed = _value(made, _inputs(made, shuffled, mixed_up(reconstructed)))
        expect(
            _agree(mixed, value),
            "the loss changes with the order of the positions; set tokenwise = False, or use inputs.mean(…)",
        )

    def test_parts(self) -> None:
        """A batch worked off prompt by prompt, as where memory is short, has the loss of the whole."""
        made, batch, reconstructed = self._fitted(), setting().batch, _noisy()
        if made.contrastive:
            raise SkipTest("it holds the positions of a batch against each other")
        whole = _inputs(made, batch, reconstructed)
        total, sums = made.denominator(whole), torch.zeros(())
        expect(total.shape == (), f"denominator returned the shape {tuple(total.shape)}, not a scalar")
        for piece, piece_reconstructed in zip(batch.split(3), reconstructed.chunk(3), strict=True):
            inputs = _inputs(made, piece, piece_reconstructed)
            sums = sums + made.denominator(inputs) * _value(made, inputs)
        expect(
            _agree(sums / total, _value(made, whole)),
            "the loss of a batch is not its prompts' losses averaged with their denominators; average with "
            "inputs.mean(…), or define denominator as what forward divides by",
        )

    def test_changed_length(self) -> None:
        """Where it does not compare position with position, the code may have another length."""
        made, batch = self._fitted(), setting().batch
        if made.requires_same_length:
            raise SkipTest("it compares position with position")
        value = _value(made, _inputs(made, batch, _noisy()[:, ::2], batch.attention[:, ::2]))
        expect(
            bool(value.isfinite()),
            "requires_same_length = False, but codes of another length give no finite loss",
        )

    # -- gradients -----------------------------------------------------------------------------------------

    def test_gradients(self) -> None:
        """A finite gradient reaches the reconstruction, and none the LLM."""
        made, (model, batch, *_) = self._fitted(), setting()
        model.requires_grad_(False).zero_grad()  # another loss may have left its traces
        reconstructed = _noisy().requires_grad_()
        value = made(_inputs(made, batch, reconstructed))
        expect(value.requires_grad, "the loss has no gradient; do not detach the reconstruction")
        value.sum().backward()
        for name, weight in model.named_parameters():
            expect(
                weight.grad is None and not weight.requires_grad,
                f"the gradient reaches {name} of the LLM, which has to stay frozen",
            )
        if reconstructed.grad is None or not reconstructed.grad[batch.cross].any():
            raise AssertionError("no gradient reaches the reconstruction; do not detach it")
        expect(bool(reconstructed.grad.isfinite().all()), "the gradient is infinite or NaN")

    def test_nothing_is_kept(self) -> None:
        """A loss is not saved with the run: nothing in it is trained or changes as it is used."""
        made = self._fitted().train()
        trained = [name for name, parameter in made.named_parameters() if parameter.requires_grad]
        expect(not trained, f"{', '.join(trained)} would never be trained: the bottleneck's parameters are")
        before = {name: value.clone() for name, value in made.state_dict().items()}
        _value(made, _inputs(made, setting().batch, _noisy()))
        for name, value in made.state_dict().items():
            expect(torch.equal(value, before[name]), f"{name} changes with use, and a resumed run lost it")

    # -- what it says of itself ----------------------------------------------------------------------------

    def test_needs_llm(self) -> None:
        """It reads the LLM's states, and the gold answers, if and only if it says so."""
        made, batch = self._fitted(), setting().batch
        inputs = _inputs(made, batch, _noisy())
        try:
            value = _value(made, inputs)
        except ValueError as error:  # what is not offered raises when it is read
            raise AssertionError(str(error)) from error
        if inputs.llm_outputs is not None:
            expect(
                vars(inputs.llm_outputs).keys() & {"student", "teacher"},
                "needs_llm = True, but the LLM's states are never read; set it to False to be much faster",
            )
        if made.teacher_forced and batch.answers is not None:
            others = Answers(*(part.flip(1) for part in batch.answers))
            other = _value(made, _inputs(made, batch._replace(answers=others), _noisy()))
            expect(
                not torch.equal(other, value),
                "teacher_forced = True, but the answers make no difference; set it to False, or every run "
                "is marked for nothing",
            )

    def test_least_squares(self) -> None:
        """Where it says that weighted least squares minimises it, its gradient vanishes there."""
        made, batch = self._fitted(), setting().batch
        if not made.least_squares:
            raise SkipTest("it does not say that least squares minimises it")
        weights = batch.weights[..., None] / batch.weights.sum()
        best = (weights * batch.embeds).sum((0, 1))
        norms = []
        for constant in (best, best + batch.embeds.std()):
            constant.requires_grad_()
            made(_inputs(made, batch, constant.expand_as(batch.embeds))).backward()
            norms.append(float(torch.as_tensor(constant.grad).norm()))
        expect(
            norms[0] < 1e-3 * norms[1],
            "least_squares = True, but the constant with the least weighted squared error is not its "
            "minimum; set it to False",
        )


def _noisy() -> Tensor:
    """[B, L, D] a reconstruction off by about as much as the embeddings vary, here more and there less."""
    _, batch, _, variance = setting()
    generator = torch.Generator().manual_seed(1)
    uneven = (
        2 * torch.rand(batch.ids.shape, generator=generator) * torch.linspace(0.5, 1, len(batch.ids))[:, None]
    )
    noise = torch.randn(batch.embeds.shape, generator=generator)
    noise *= variance**0.5 * uneven[..., None]
    return batch.embeds + noise


def _inputs(made: Loss, batch: Batch, reconstructed: Tensor, length: Tensor | None = None) -> LossInputs:
    """What training hands to a loss that says of itself what this one says.

    `reconstructed` [B, L, D] is put into the prompts, or [B, M, D] in their place, with the mask `length`
    [B, M]. The code is the reconstruction itself.
    """
    model, _, special, variance = setting()
    llm = FrozenLLM(model, layers=made.layers or (), last=made.layers is None) if made.needs_llm else None
    mask = batch.cross if length is None else length
    code = Code(reconstructed, mask, torch.zeros(mask.shape))
    if not made.teacher_forced:
        batch = batch._replace(answers=None)
    return Presenter(variance, special, length is not None, llm)(batch, lambda *_: (code, reconstructed))


def _value(made: Loss, inputs: LossInputs) -> Tensor:
    with torch.no_grad():
        value = made(inputs)
    expect(isinstance(value, Tensor), f"forward returned {type(value).__name__}; return a scalar tensor")
    return torch.as_tensor(value)


def _agree(one: Tensor, two: Tensor) -> bool:
    return bool(torch.isclose(one.double(), two.double(), rtol=AGREE, atol=1e-9))


def _twice(part: Tensor) -> Tensor:
    return torch.cat([part, part])


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with all its tensors changed."""
    ids, embeds, attention, cross, weights = map(change, batch[:5])
    return Batch(
        ids, embeds, attention, cross, weights, answers=batch.answers and Answers(*map(change, batch.answers))
    )

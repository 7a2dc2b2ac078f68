"""One optimiser step, and how it fits into memory and onto several processes."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from stage1.bottleneck.batches import Batch
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.config import TrainConfig
from stage1.plugins.tensors import LossInputs
from stage1.training.batches import step_seed
from stage1.training.inputs import RoundTrip
from stage1.training.objective import contributions, gradients
from stage1.training.schedule import learning_rate

if TYPE_CHECKING:
    from stage1.training.trainer import Trainer


class NotFiniteError(Exception):
    """A loss or the gradient became NaN or infinite; the message names which. The weights are untouched."""


class NothingToTrainError(Exception):
    """The objective does not depend on any parameter."""


class Stepper:
    """Makes optimiser steps; the same ones whether a batch is worked off at once, in parts or by processes.

    Attributes:
        module: the way through the bottleneck, as accelerate has prepared it.
        optimizer: AdamW over the parameters that are trained.
        weights: these by name, in the optimiser's order.
        parts: pieces a batch is worked off in; doubled when memory runs out.
    """

    def __init__(self, trainer: "Trainer") -> None:
        self.bottleneck, self.objective, self.present = trainer.bottleneck, trainer.objective, trainer.present
        self.config, self.accelerator, self.progress = trainer.config, trainer.accelerator, trainer.progress
        self.parts = 1
        self.alone = RoundTrip(self.bottleneck)  # no reduction over processes
        train = self.config.train
        groups, self.weights = parameter_groups(self.bottleneck, train)
        self.module: nn.Module = self.alone
        self.optimizer: Any = None
        if self.weights:
            optimizer = torch.optim.AdamW(groups, lr=train.lr, weight_decay=train.weight_decay)
            self.module, self.optimizer = self.accelerator.prepare(self.alone, optimizer)

    def step(self, batch: Batch, number: int, *, compare: bool) -> dict[str, Any]:
        """Step `number` on `batch`; with `compare` the terms' own gradients too. What is worth logging.

        Raises:
            NotFiniteError: before the weights are touched.
            NothingToTrainError: there is no gradient.
        """
        torch.manual_seed(step_seed(self.config.seed, number))  # dropout and the like in plugins
        self.module.train()
        lr = learning_rate(number, self.config.train)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        if self.objective.lacks_means:
            self.objective.observe(self._in_parts(batch, self._values))
        weights = self.objective.weights(number)
        values = self._in_parts(batch, partial(self._backward, weights=weights))
        norm = float(self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.train.clip))
        if bad := [name for name, v in {**values, "gradient norm": norm}.items() if not math.isfinite(v)]:
            raise NotFiniteError(", ".join(bad))
        compared = self._compare_gradients(batch) if compare and len(values) > 1 else {}
        self.optimizer.step()
        self.objective.observe(values)
        loss = sum(weights[name] * value for name, value in values.items())
        terms = contributions(values, weights)
        return {"lr": lr, "loss": loss, "terms": terms, "grad_norm": norm, **compared}

    # -- parts and processes --------------------------------------------------------------------------

    def _in_parts(
        self, batch: Batch, work: Callable[[Batch, Mapping[str, float]], Mapping[str, Tensor]]
    ) -> dict[str, float]:
        """The terms' values on the whole batch of all processes: `work` on this one's pieces, summed up.

        `work` is told each term's share: its denominator on the piece, of that of everything.
        """
        several = self.accelerator.num_processes > 1
        whole = self._whole(batch) if several else None
        while True:
            self.optimizer.zero_grad()
            try:
                if self.parts > 1 and not several:
                    whole = self._whole(batch)
                sums = self._sum(batch, whole, work)
                break
            except Exception as error:
                if not should_reduce_batch_size(error) or self.parts >= batch.pieces:
                    raise
            self.parts *= 2
            self.progress.note(f"Out of memory: working in {self.parts} parts per batch.")
        mine = torch.tensor(list(sums.values()), dtype=torch.float64, device=batch.ids.device)
        every = self.accelerator.reduce(mine, "sum")
        return dict(zip(sums, every.tolist(), strict=True))

    def _sum(
        self,
        batch: Batch,
        whole: Mapping[str, Tensor] | None,
        work: Callable[[Batch, Mapping[str, float]], Mapping[str, Tensor]],
    ) -> dict[str, float]:
        sums = dict.fromkeys(self.objective.losses, 0.0)
        pieces = list(batch.split(self.parts))
        for number, piece in enumerate(pieces, 1):
            shares = dict.fromkeys(sums, 1.0)
            if whole is not None:
                own = self._denominators(piece)
                shares = {name: float(own[name] / whole[name]) for name in own}
            # Gradients travel once, with the last piece: processes may work in unequal numbers of parts.
            last = number == len(pieces)
            with nullcontext() if last else self.accelerator.no_sync(self.module):
                for name, value in work(piece, shares).items():
                    sums[name] += float(value.detach()) * shares[name]
        return sums

    def _whole(self, batch: Batch) -> dict[str, Tensor]:
        """Each term's denominator on the batches of all processes together."""
        pieces = [self._denominators(piece) for piece in batch.split(self.parts)]
        terms = self.objective.losses
        mine = torch.stack([torch.stack([piece[name] for piece in pieces]).sum() for name in terms])
        return dict(zip(terms, self.accelerator.reduce(mine, "sum"), strict=True))

    @torch.no_grad()
    def _denominators(self, piece: Batch) -> dict[str, Tensor]:
        return self.objective.denominators(*self.present.both(piece, self.alone))

    # -- what is done with a piece --------------------------------------------------------------------

    @torch.no_grad()
    def _values(self, piece: Batch, shares: Mapping[str, float]) -> Mapping[str, Tensor]:
        return self._counting(self.present.both(piece, self.alone), shares)

    def _backward(
        self, piece: Batch, shares: Mapping[str, float], *, weights: Mapping[str, float]
    ) -> Mapping[str, Tensor]:
        values = self._counting(self.present.both(piece, self.module), shares)
        if not values:
            return values  # nothing of this piece counts
        # Accelerate takes the mean over the processes, of which each has its share of the whole.
        factor = self.accelerator.num_processes
        total = self.objective.total(values, {name: factor * shares[name] * weights[name] for name in values})
        if not total.requires_grad:
            raise NothingToTrainError
        self.accelerator.backward(total)
        return values

    def _counting(
        self, seen: tuple[LossInputs, LossInputs | None], shares: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """The terms that have something to average over; a mean over nothing is not a number."""
        values: dict[str, Tensor] = self.objective(*seen)
        return {name: value for name, value in values.items() if shares[name]}

    def _compare_gradients(self, batch: Batch) -> dict[str, Any]:
        """The terms' own gradients on (the first piece of) the batch."""
        values = self.objective(*self.present.both(next(batch.split(self.parts)), self.alone))
        trained = [p for p in self.bottleneck.parameters() if p.requires_grad]
        return {"gradients": gradients(values, trained)}


def parameter_groups(
    bottleneck: Bottleneck, train: TrainConfig
) -> tuple[list[dict[str, Any]], dict[str, nn.Parameter]]:
    """The optimiser's groups, one for each part of the bottleneck with its factor; their parameters by name.

    A part whose factor is 0 is frozen here.
    """
    groups: list[dict[str, Any]] = []
    weights: dict[str, nn.Parameter] = {}
    for part in ("compressor", "adapter"):
        factor = train.lr_factors.get(part, 1.0)
        module: nn.Module = getattr(bottleneck, part)
        own = {f"{part}.{name}": p for name, p in module.named_parameters() if p.requires_grad}
        if factor == 0:
            module.requires_grad_(False)
        elif own:
            groups.append({"params": list(own.values()), "factor": factor})
            weights |= own
    return groups, weights

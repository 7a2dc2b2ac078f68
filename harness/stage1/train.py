"""Training: fit in closed form, warm-start, then one loop for every loss.

The loop is a sequence of pure steps: what step *k* does follows from the configuration and the state
after step *k − 1* alone, so a run that was killed and resumed ends with the same weights, bit for bit.
"""

import math
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from stage1.batches import Batch, Batches, PromptBatches, TokenBatches, collate, step_seed
from stage1.bottleneck import Bottleneck
from stage1.config import RunConfig
from stage1.data import Prompt, note_truncation
from stage1.errors import TrainingError
from stage1.inputs import Inputs
from stage1.interfaces import Component, Loss
from stage1.llm import load_llm
from stage1.plugins import Registry, Resolved
from stage1.progress import Progress
from stage1.runs import Run
from stage1.tensors import Embedded, LLMOutputs, LossInputs, TokenStats
from stage1.tokens import ReconstructionError, count_tokens, training_shares

ROWS = 4096
"""Tokens rebuilt at a time when the selection error is measured."""


def make_accelerator(device: torch.device) -> Accelerator:
    """Accelerate's handle on the device, or on this process's share under `accelerate launch`."""
    if "LOCAL_RANK" not in os.environ:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    return Accelerator(cpu=device.type == "cpu")


class Objective(nn.Module):
    """The weighted sum of the losses."""

    def __init__(self, resolved: Resolved) -> None:
        super().__init__()
        self.losses: dict[str, Loss] = {name: c.cls(c.config) for name, c in resolved.losses.items()}
        self.weights = {name: choice.weight for name, choice in resolved.losses.items()}
        self._registered = nn.ModuleList(self.losses.values())  # so that `.to(device)` reaches them

    @property
    def needs_llm(self) -> bool:
        """True if a term reads the LLM's outputs."""
        return any(loss.needs_llm for loss in self.losses.values())

    @property
    def tokenwise(self) -> bool:
        """True if every term is a weighted mean over positions that looks at one position at a time."""
        return not self.needs_llm and all(loss.tokenwise for loss in self.losses.values())

    @property
    def least_squares(self) -> bool:
        """True if weighted least squares minimises every term."""
        return all(loss.least_squares for loss in self.losses.values())

    def forward(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The total and each term's own value."""
        values: dict[str, Tensor] = {name: loss(inputs) for name, loss in self.losses.items()}
        return torch.stack([self.weights[name] * value for name, value in values.items()]).sum(), values


class Trainer:
    """One training run, from prompts to the saved bottleneck."""

    def __init__(self, resolved: Resolved, inputs: Inputs, registry: Registry, progress: Progress) -> None:
        self.config: RunConfig = inputs.config
        self.inputs, self.registry, self.progress = inputs, registry, progress
        self.accelerator = make_accelerator(inputs.device)
        self.main = self.accelerator.is_main_process
        self.objective = Objective(resolved).to(inputs.device)
        self.bottleneck = Bottleneck.build(
            resolved, self.config.magnitude, inputs.table.shape[1], self.config.seed
        ).to(inputs.device)
        with progress.task("Tokenising prompts"):
            prompts = inputs.prompts(inputs.data.train)
            self.held_out = inputs.prompts(inputs.data.selection)
        note_truncation(prompts, "training", progress)
        self.stats = count_tokens(prompts, inputs.table)
        self.held_out_stats = count_tokens(self.held_out, inputs.table)
        self.shares = training_shares(self.stats, self.config.train.uniform)
        self.fast = self.bottleneck.tokenwise and self.objective.tokenwise
        self.batches = self._batches(prompts)
        self.llm: Any = self._load_llm() if self.objective.needs_llm else None
        self.parts = 1  # pieces a batch is worked off in; doubled when memory runs out
        self.step, self.best_step, self.best_error, self.stale = 0, 0, math.inf, 0
        self.best: dict[str, Tensor] = {}
        self._stop_signal: int | None = None

    @property
    def components(self) -> dict[str, Component]:
        """The plugins at work, by what they are to the run."""
        parts: dict[str, Component] = {
            "compressor": self.bottleneck.compressor,
            "adapter": self.bottleneck.adapter,
        }
        return parts | {f"losses.{name}": loss for name, loss in self.objective.losses.items()}

    # -- setting up -----------------------------------------------------------------------------------

    def _batches(self, prompts: list[Prompt]) -> Batches:
        train, seed = self.config.train, self.config.seed
        share = {"rank": self.accelerator.process_index, "processes": self.accelerator.num_processes}
        if self.fast:
            return TokenBatches(self.stats, self.shares, train.batch_tokens, seed, **share)
        table = self.inputs.table
        return PromptBatches(prompts, table, self.stats, self.shares, train.batch_prompts, seed, **share)

    def _load_llm(self) -> Any:
        config, inputs = self.config, self.inputs
        with self.progress.task("Loading the LLM"):
            return load_llm(
                inputs.folder,
                dtype=config.dtype,
                device=inputs.device,
                trust_remote_code=config.model.trust_remote_code,
            )

    def _prepare(self) -> None:
        trainable = [p for p in self.bottleneck.parameters() if p.requires_grad]
        self.module: nn.Module = self.bottleneck
        self.optimizer: Any = None
        if trainable and self.config.train.steps:
            train = self.config.train
            optimizer = torch.optim.AdamW(trainable, lr=train.lr, weight_decay=train.weight_decay)
            self.module, self.optimizer = self.accelerator.prepare(self.bottleneck, optimizer)

    # -- the run --------------------------------------------------------------------------------------

    def train(self, run: Run) -> None:
        """Run (or resume) the training; the best checkpoint is saved in `run`."""
        self.run = run
        state = run.load_state()
        if state is None:
            with self.progress.task(f"Fitting {self.bottleneck.compressor.name}"):
                self.bottleneck.fit(self.stats, self.inputs.table)
            self._prepare()
        else:
            self.bottleneck.attach(self.inputs.table)
            self._prepare()
            self._restore(*state)
            self.progress.note(f"Resumed after step {self.step}.")
        if self.main:
            self.run.forget_after(self.step if state else -1)
        with self._deferred_interrupt():
            self._loop(fresh=state is None)
            self._refit()
        self.bottleneck.load_state_dict(self.best)
        if self.main:
            self.bottleneck.save_pretrained(
                self.run.path,
                model=self.config.model,
                table_hash=self.inputs.table_hash,
                registry=self.registry,
            )
            self.run.drop_state()
        self.accelerator.wait_for_everyone()

    def _loop(self, *, fresh: bool) -> None:
        steps = self.config.train.steps if self.optimizer else 0
        if fresh:
            self._check({})
        with self.progress.task("Training", steps, "steps") as advance:
            advance(self.step)
            while self.step < steps and self.stale < self.config.train.patience:
                logged = self._optimise()
                self.step += 1
                advance(1)
                if self.step % self.config.train.check_every == 0 or self.step == steps:
                    self._check(logged)
                if self._stop_signal or self.step % self.config.train.save_every == 0:
                    self._save()
                if self._stop_signal:
                    raise KeyboardInterrupt

    def _refit(self) -> None:
        """End with the adapter's closed form, where least squares is what was trained for: one more step."""
        if self.optimizer is None or not (self.fast and self.objective.least_squares):
            return
        weighted = replace(self.stats, counts=self.shares)
        with self.progress.task("Solving the last layer"), torch.no_grad():
            self.bottleneck.adapter.refit(self.bottleneck.encode_rows, weighted)
        self.step += 1
        self._check({"refit": True})

    def _optimise(self) -> dict[str, float]:
        """One optimiser step; returns what is worth logging."""
        torch.manual_seed(step_seed(self.config.seed, self.step))  # dropout and the like in plugins
        self.module.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.config)
        batch = self.batches.batch(self.step)
        while True:
            self.optimizer.zero_grad()
            try:
                terms = self._backward(batch)
                break
            except Exception as error:
                if not should_reduce_batch_size(error) or self.parts >= batch.ids.numel():
                    raise
            self.parts *= 2
            self.progress.note(f"Out of memory at step {self.step}: working in {self.parts} parts per batch.")
        norm = float(self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.train.clip))
        self._refuse_nan({**terms, "gradient norm": norm})
        self.optimizer.step()
        return {"lr": self.optimizer.param_groups[0]["lr"], **terms, "grad_norm": norm}

    def _backward(self, batch: Batch) -> dict[str, float]:
        """Accumulate the gradient of the batch in `self.parts` pieces; returns the total and the terms."""
        whole = batch.weights.sum()
        sums: dict[str, float] = {}
        for piece in batch.split(self.parts):
            share = piece.weights.sum() / whole
            if not share:
                continue  # nothing of this piece crosses the bottleneck
            total, terms = self.objective(self._loss_inputs(piece))
            self.accelerator.backward(total * share)
            for name, value in {"loss": total, **terms}.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach() * share)
        return sums

    def _loss_inputs(self, batch: Batch) -> LossInputs:
        rebuilt = self.module(batch.embeds, batch.cross)
        llm = None
        if self.llm is not None:
            original = Embedded(batch.embeds, batch.attention)
            llm = LLMOutputs(self._run_llm, original, self._in_place(batch, rebuilt))
        return LossInputs(batch.embeds, rebuilt, batch.weights, batch.ids, self.stats.variance, llm)

    def _in_place(self, batch: Batch, rebuilt: Tensor) -> Embedded:
        original = Embedded(batch.embeds, batch.attention)
        if self.bottleneck.compressor.changes_length:
            return self.bottleneck.splice(original, batch.cross, self.bottleneck.rebuild)
        return self.bottleneck.splice(original, batch.cross, lambda *_: (rebuilt, batch.cross))

    def _run_llm(self, prompts: Embedded) -> Any:
        positions = (prompts.attention.long().cumsum(1) - 1).clamp(min=0)
        return self.llm(
            inputs_embeds=prompts.embeds.to(self.llm.dtype),
            attention_mask=prompts.attention.long(),
            position_ids=positions,
            use_cache=False,
        )

    def _refuse_nan(self, values: Mapping[str, float]) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if not bad:
            return
        self._save()
        raise TrainingError(
            f"{', '.join(bad)} became NaN or infinite at step {self.step}; the weights before it are kept.",
            f"Lower the learning rate and go on: "
            f"stage1 train --resume --output {self.run.path} --set train.lr={self.config.train.lr / 10:g}",
        )

    # -- selection ------------------------------------------------------------------------------------

    def _check(self, logged: Mapping[str, float]) -> None:
        """Measure on the selection split, remember the best weights, log."""
        self.module.eval()
        with torch.no_grad():
            measured = self._held_out_error()
        error = torch.tensor(measured["recon"], device=self.inputs.device)
        chosen = float(broadcast(error))  # every process must come to the same decision
        self.stale += 1
        if chosen < self.best_error:
            self.best_error, self.best_step, self.stale = chosen, self.step, 0
            self.best = {k: v.detach().clone() for k, v in self.bottleneck.state_dict().items()}
        entry = {"step": self.step, **logged, "selection": measured}
        if self.main:
            self.run.log(entry)
            self.registry.emit("stage1_step", run=self.run.path, step=self.step, metrics=entry)

    def _held_out_error(self) -> dict[str, float]:
        errors, stats = ReconstructionError(), self.held_out_stats
        if self.bottleneck.tokenwise:
            chunks = zip(torch.split(stats.embeds, ROWS), torch.split(stats.counts, ROWS), strict=True)
            for rows, counts in chunks:
                mask = torch.ones(1, len(rows), dtype=torch.bool, device=rows.device)
                errors.add(rows, self.bottleneck(rows[None], mask)[0], counts)
            return errors.summary(stats.variance)
        return self._held_out_prompts(errors, stats)

    def _held_out_prompts(self, errors: ReconstructionError, stats: TokenStats) -> dict[str, float]:
        even = torch.ones(len(self.inputs.table), device=self.inputs.device)
        size, objective, seen = self.config.train.batch_prompts, 0.0, 0.0
        for start in range(0, len(self.held_out), size):
            batch = collate(self.held_out[start : start + size], self.inputs.table, even)
            if self.bottleneck.compressor.changes_length:
                weight = float(batch.weights.sum())
                objective += weight * float(self.objective(self._loss_inputs(batch))[0])
                seen += weight
            else:
                rebuilt = self.bottleneck(batch.embeds, batch.cross)[batch.cross]
                errors.add(batch.embeds[batch.cross], rebuilt, batch.weights[batch.cross])
        # Vectors that match no position have no reconstruction error; the objective itself decides then.
        return {"recon": objective / seen} if seen else errors.summary(stats.variance)

    # -- interruption ---------------------------------------------------------------------------------

    @contextmanager
    def _deferred_interrupt(self) -> Iterator[None]:
        """Finish the step in hand when Ctrl-C (or a SIGTERM) comes; a second Ctrl-C stops at once."""

        def note(number: int, _frame: Any) -> None:
            self._stop_signal = number
            signal.signal(signal.SIGINT, signal.default_int_handler)

        previous = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _save(self) -> None:
        if not self.main:
            return
        tensors = {f"now.{k}": v for k, v in self.bottleneck.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
        facts = {
            "step": self.step,
            "best_step": self.best_step,
            "best_error": self.best_error,
            "stale": self.stale,
            "parts": self.parts,
        }
        self.run.save_state(tensors, facts)

    def _restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.bottleneck.load_state_dict(part("now."))
        self.best = part("best.")
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in part("optimizer.").items():
            index, slot = name.split(".")
            slots.setdefault(int(index), {})[slot] = value
        if self.optimizer is not None:
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})
        self.step, self.best_step = facts["step"], facts["best_step"]
        self.best_error, self.stale, self.parts = facts["best_error"], facts["stale"], facts["parts"]


def learning_rate(step: int, config: RunConfig) -> float:
    """Linear warm-up, then a half cosine down to zero at the last step."""
    train = config.train
    warmup = round(train.warmup * train.steps)
    if step < warmup:
        return train.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, train.steps - warmup)
    return train.lr * 0.5 * (1 + math.cos(math.pi * done))

"""Training: fit in closed form, warm-start, then one loop for every loss.

The loop is a sequence of pure steps: what step *k* does follows from the configuration and the state
after step *k − 1* alone, so a run that was killed and resumed ends with the same weights, bit for bit.
"""

import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from transformers import PreTrainedModel

from stage1.bottleneck.batches import Batch
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import count_tokens, training_shares
from stage1.config import RunConfig
from stage1.data.prompts import Prompt, note_truncation
from stage1.errors import TrainingError
from stage1.llm.states import FrozenLLM
from stage1.plugins import Registry, Resolved
from stage1.plugins.interfaces import Component
from stage1.plugins.tensors import Embedded, LLMOutputs, LossInputs
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.session import Session
from stage1.training.batches import Batches, PromptBatches, TokenBatches, step_seed
from stage1.training.objective import Objective, contributions, gradients
from stage1.training.selection import Selection


def make_accelerator(device: torch.device) -> Accelerator:
    """Accelerate's handle on the device, or on this process's share under `accelerate launch`."""
    if "LOCAL_RANK" not in os.environ:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    return Accelerator(cpu=device.type == "cpu")


class Trainer:
    """One training run, from prompts to the saved bottleneck."""

    def __init__(
        self,
        resolved: Resolved,
        inputs: Session,
        registry: Registry,
        progress: Progress,
        *,
        ask: bool = False,
    ) -> None:
        self.config: RunConfig = inputs.config
        self.inputs, self.registry, self.progress = inputs, registry, progress
        self.accelerator = make_accelerator(inputs.device)
        self.main = self.accelerator.is_main_process
        self.objective = Objective(resolved).to(inputs.device)
        self.bottleneck = Bottleneck.build(
            resolved, self.config.magnitude, inputs.table.shape[1], self.config.seed
        ).to(inputs.device)
        model = inputs.model.llm if ask or self.objective.needs_llm else None
        self.llm = self._frozen(model) if model and self.objective.needs_llm else None
        with progress.task("Tokenising prompts"):
            prompts = inputs.prompts(inputs.data.train)
            self.selection = Selection(inputs, ask=model is not None)
        note_truncation(prompts, "training", progress)
        self.stats = count_tokens(prompts, inputs.table)
        self.shares = training_shares(self.stats, self.config.train.uniform)
        self.fast = self.bottleneck.tokenwise and self.objective.tokenwise
        self.batches = self._batches(prompts)
        self.special = torch.tensor(inputs.tokenizer.all_special_ids, device=inputs.device)
        self.parts = 1  # pieces a batch is worked off in; doubled when memory runs out
        self.step, self.best_step, self.best_error, self.stale = 0, 0, math.inf, 0
        self.best: dict[str, Tensor] = {}
        self._stop_signal: int | None = None

    @property
    def components(self) -> dict[str, Component]:
        """The plugins at work, by what they are to the run."""
        paths = [f"compressors.{i}" for i in range(len(self.bottleneck.stages))]
        parts: dict[str, Component] = dict(zip(paths, self.bottleneck.stages, strict=True))
        parts["adapter"] = self.bottleneck.adapter
        return parts | {f"losses.{name}": loss for name, loss in self.objective.losses.items()}

    # -- setting up -----------------------------------------------------------------------------------

    def _batches(self, prompts: list[Prompt]) -> Batches:
        train, seed, inputs = self.config.train, self.config.seed, self.inputs
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        if self.fast:
            size = train.batch_tokens
            return TokenBatches(self.stats, self.shares, size, seed, rank=rank, processes=processes)
        answers = inputs.answer_ids(inputs.data.train, prompts) if self.objective.teacher_forced else None
        return PromptBatches(
            prompts,
            inputs.table,
            self.stats,
            self.shares,
            train.batch_prompts,
            seed,
            answers=answers,
            rank=rank,
            processes=processes,
        )

    def _frozen(self, model: PreTrainedModel) -> FrozenLLM:
        return FrozenLLM(
            model,
            layers=self.objective.layers,
            last=self.objective.reads_last_states,
            checkpointing=self.config.train.checkpointing,
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
            self._start()
            self._prepare()
        else:
            self.bottleneck.receive_table(self.inputs.table)
            self._prepare()
            self._restore(*state)
            self.progress.note(f"Resumed after step {self.step}.")
        with self._deferred_interrupt():
            self._loop(fresh=state is None)
            self._refit()
            if self._stop_signal:  # it came during the closed form, which the resumed run solves again
                raise KeyboardInterrupt
        if self.llm is not None:
            self.llm.assert_frozen()
        self.bottleneck.load_state_dict(self.best)
        if self.main:
            self.bottleneck.save_pretrained(
                self.run.path,
                model=self.config.model,
                table_hash=self.inputs.model.table_hash,
                registry=self.registry,
            )
            self.run.drop_state()
        self.accelerator.wait_for_everyone()

    def _start(self) -> None:
        """Begin with the closed forms, or with what another run has learned."""
        if self.config.init is not None:
            self.bottleneck.start_from(self.config.init, self.inputs.table)
            return
        with self.progress.task(f"Fitting {self.bottleneck.compressor.name}"):
            self.bottleneck.fit(self.stats, self.inputs.table, self.progress)

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
                if self._is_check(self.step):
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
            try:
                self.bottleneck.adapter.solve_last_layer(self.bottleneck.encode_rows, weighted)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                # Hidden units that a far too high learning rate has saturated are all alike.
                self.progress.note("The last layer's closed form has no solution here: it stays as trained.")
                return
        self.step += 1
        self._check({"refit": True})

    def _optimise(self) -> dict[str, Any]:
        """One optimiser step; returns what is worth logging."""
        torch.manual_seed(step_seed(self.config.seed, self.step))  # dropout and the like in plugins
        self.module.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.config)
        batch = self.batches.batch(self.step)
        if self.objective.lacks_means:
            self._observe(self._sparing_memory(batch, self._values))
        weights = self.objective.weights(self.step)
        values = self._sparing_memory(batch, lambda piece, share: self._backward(piece, share, weights))
        norm = float(self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.train.clip))
        self._refuse_nan({**values, "gradient norm": norm})
        report = self._compare_gradients(batch) if self._is_check(self.step + 1) else {}
        self.optimizer.step()
        self._observe(values)
        total = sum(weights[name] * value for name, value in values.items())
        terms = contributions(values, weights)
        lr = self.optimizer.param_groups[0]["lr"]
        return {"lr": lr, "loss": total, "terms": terms, "grad_norm": norm, **report}

    def _is_check(self, step: int) -> bool:
        return step % self.config.train.check_every == 0 or step == self.config.train.steps

    def _sparing_memory(
        self, batch: Batch, work: Callable[[Batch, Tensor], Mapping[str, Tensor]]
    ) -> dict[str, float]:
        """Do `work` on the batch in `self.parts` pieces, more where memory runs out; the terms' means."""
        whole = batch.weights.sum()
        while True:
            self.optimizer.zero_grad()
            sums: dict[str, float] = {}
            try:
                for piece in batch.split(self.parts):
                    share = piece.weights.sum() / whole
                    if not share:
                        continue  # nothing of this piece crosses the bottleneck
                    for name, value in work(piece, share).items():
                        sums[name] = sums.get(name, 0.0) + float(value.detach() * share)
                return sums
            except Exception as error:
                if not should_reduce_batch_size(error) or self.parts >= batch.pieces:
                    raise
            self.parts *= 2
            self.progress.note(f"Out of memory at step {self.step}: working in {self.parts} parts per batch.")

    def _values(self, piece: Batch, _share: Tensor) -> Mapping[str, Tensor]:
        with torch.no_grad():
            values: Mapping[str, Tensor] = self.objective(self._loss_inputs(piece))
        return values

    def _backward(self, piece: Batch, share: Tensor, weights: Mapping[str, float]) -> Mapping[str, Tensor]:
        values: Mapping[str, Tensor] = self.objective(self._loss_inputs(piece))
        self.accelerator.backward(self.objective.total(values, weights) * share)
        return values

    def _observe(self, values: Mapping[str, float]) -> None:
        """Tell the objective the terms' values, averaged over the processes so that their weights agree."""
        mine = torch.tensor(list(values.values()), dtype=torch.float64, device=self.inputs.device)
        every = self.accelerator.reduce(mine, "mean")
        self.objective.observe(dict(zip(values, every.tolist(), strict=True)))

    def _compare_gradients(self, batch: Batch) -> dict[str, Any]:
        """The terms' own gradients on (the first piece of) the batch, where there are several terms."""
        if len(self.objective.losses) < 2:
            return {}
        piece = next(batch.split(self.parts))
        values = self.objective(self._loss_inputs(piece, self.bottleneck))  # no reduction over processes
        return {"gradients": gradients(values, [p for p in self.bottleneck.parameters() if p.requires_grad])}

    def _loss_inputs(self, batch: Batch, module: nn.Module | None = None) -> LossInputs:
        rebuilt = (module or self.module)(batch.embeds, batch.cross)
        llm = None
        if self.llm is not None:
            original = Embedded(batch.embeds, batch.attention)
            spliced, ordinary = self._in_place(batch, rebuilt), batch.ordinary(self.special)
            llm = LLMOutputs(self.llm, self.llm.head, original, spliced, ordinary, batch.answers)
        return LossInputs(batch.embeds, rebuilt, batch.weights, batch.ids, self.stats.variance, llm)

    def _in_place(self, batch: Batch, rebuilt: Tensor) -> Embedded:
        original = Embedded(batch.embeds, batch.attention)
        if self.bottleneck.compressor.changes_length:
            return self.bottleneck.splice(original, batch.cross, self.bottleneck.rebuild)
        return self.bottleneck.splice(original, batch.cross, lambda *_: (rebuilt, batch.cross))

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

    def _check(self, logged: Mapping[str, Any]) -> None:
        """Measure on the selection split, remember the best weights, log."""
        self.module.eval()
        measured = self.selection.measure(self.bottleneck, self.objective, self._loss_inputs)
        error = torch.tensor(measured["score"], device=self.inputs.device)
        chosen = float(broadcast(error))  # every process must come to the same decision
        self.stale += 1
        if chosen < self.best_error:
            self.best_error, self.best_step, self.stale = chosen, self.step, 0
            self.best = {k: v.detach().clone() for k, v in self.bottleneck.state_dict().items()}
        entry = {"step": self.step, **logged, "selection": measured}
        if self.main:
            self.registry.emit("stage1_step", run=self.run.path, step=self.step, metrics=entry)

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
            "running": self.objective.running,
            "typical": self.selection.typical,
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
        self.objective.running, self.selection.typical = facts["running"], facts["typical"]


def learning_rate(step: int, config: RunConfig) -> float:
    """Linear warm-up, then a half cosine down to zero at the last step."""
    train = config.train
    warmup = round(train.warmup * train.steps)
    if step < warmup:
        return train.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, train.steps - warmup)
    return train.lr * 0.5 * (1 + math.cos(math.pi * done))

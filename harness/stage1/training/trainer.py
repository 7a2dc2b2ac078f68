"""Training: fit in closed form, warm-start, then one loop for every loss.

What a training works on is put together here, before there is a folder; `loop` trains.
"""

import os
import time
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from stage1.bottleneck.batches import in_front
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import occurrence_weights, training_rows
from stage1.config import SUFFICES, RunConfig
from stage1.data.prompts import Prompt, note_truncation
from stage1.errors import PluginError
from stage1.llm.states import FrozenLLM
from stage1.plugins import Resolved, load_plugins, source_sha256
from stage1.plugins.interfaces import Component
from stage1.processes import is_first, several
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.session import Session
from stage1.training.batches import Batches, PromptBatches, TokenBatches
from stage1.training.course import unimproved
from stage1.training.inputs import Presenter
from stage1.training.loop import Loop
from stage1.training.objective import Objective
from stage1.training.selection import Selection, affordable_questions
from stage1.training.sensitivity import fitting_stats


def make_accelerator(device: torch.device) -> Accelerator:
    """Accelerate's handle on the device, or on this process's share under `accelerate launch`."""
    if not several():
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    return Accelerator(cpu=device.type == "cpu")


def _note_little_to_gain(start: Run, progress: Progress) -> None:
    """Say it where losses that read the LLM start from a run which keeps most of the text F1 without them."""
    results = start.read_results()
    kept = results and results["verdict"]["ratio"]
    if kept and kept >= SUFFICES:
        progress.note(
            f"{start.path} keeps {100 * kept:.0f} % of the text F1 already. From there losses that read the "
            "LLM gained nothing on SmolLM2 (docs/log.md)."
        )


class Trainer:
    """One training run, from prompts to the saved bottleneck."""

    def __init__(self, resolved: Resolved, session: Session, *, ask: bool = False) -> None:
        self.config: RunConfig = session.config
        self.resolved, self.session, self.progress = resolved, session, session.progress
        self.accelerator = make_accelerator(session.device)
        self.objective = Objective(resolved).to(session.device)
        self.bottleneck = Bottleneck.build(
            resolved, self.config.magnitude, session.table.shape[1], self.config.seed
        ).to(session.device)
        model = session.model.llm if ask or self.objective.needs_llm else None
        self.llm = None
        if model and self.objective.needs_llm:
            self.llm = FrozenLLM(
                model,
                layers=self.objective.layers,
                last=self.objective.reads_last_states,
                checkpointing=self.config.train.checkpointing,
            )
        with self.progress.task("Tokenizing prompts"):
            prompts, held_out = (session.prompts(qs) for qs in (session.data.train, session.data.selection))
        note_truncation(prompts, "training", self.progress)
        self.stats = fitting_stats(session, prompts)
        if self.llm:
            self.llm.share(in_front([*prompts, *held_out], session.table))
        if self.llm and self.config.init:
            _note_little_to_gain(Run(self.config.init), self.progress)
        self.present = Presenter(
            self.stats.variance,
            session.special,
            self.bottleneck.compressor.changes_length,
            self.llm,
        )
        self.fast = self.bottleneck.tokenwise and self.objective.tokenwise
        train = self.config.train
        self.rows = training_rows(self.stats, train.uniform, session.table, train.vocabulary)
        self.batches = self._batches(prompts)
        self.selection = Selection(session, held_out, self._check_questions(prompts, model))

    # -- setting up -----------------------------------------------------------------------------------

    def _batches(self, prompts: list[Prompt]) -> Batches:
        train, seed, session = self.config.train, self.config.seed, self.session
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        tokens = TokenBatches(self.rows, train.batch_tokens, seed, rank=rank, processes=processes)
        if self.fast:
            return tokens
        answers = session.answer_ids(session.data.train, prompts) if self.objective.teacher_forced else None
        return PromptBatches(
            [prompt.behind(self.present.shared) for prompt in prompts],
            session.table,
            occurrence_weights(self.stats, train.uniform, session.table),
            train.batch_prompts,
            seed,
            answers=answers,
            tokens=tokens if self.bottleneck.tokenwise and self.objective.mixed else None,
            rank=rank,
            processes=processes,
        )

    def _check_questions(self, prompts: list[Prompt], model: PreTrainedModel | None) -> int:
        """Questions of an F1 check: as many as were asked for, or as can be afforded."""
        train = self.config.train
        if model is None:
            return 0
        if train.check_questions:
            return train.check_questions
        length = sum(len(prompt.ids) for prompt in prompts) / len(prompts) - self.present.shared
        tokens = min(train.batch_tokens, len(self.rows.ids)) if self.fast else train.batch_prompts * length
        return affordable_questions(
            self.config,
            self.bottleneck,
            model,
            reads_llm=self.objective.needs_llm,
            tokens=tokens,
            length=length,
        )

    # -- the run --------------------------------------------------------------------------------------

    def train(self, run: Run, **facts: Any) -> None:
        """Run (or resume) the training; the best checkpoint is saved in `run`, and a manifest.

        The manifest says what was trained on what, the `facts`, and at the end what came of it
        (`Course.summary`).
        """
        facts = {**self._provenance(run), **facts}
        if is_first():
            run.write_manifest(facts)
        state = run.state.load()
        began = time.perf_counter()
        if state is None:
            self._start()
        loop = Loop(self, run, state)
        loop.course.seconds += time.perf_counter() - began  # the closed forms
        summary = loop.train()
        if self.llm is not None:
            self.llm.assert_frozen()
        if message := unimproved(summary):
            self.progress.note(message)
        self.bottleneck.load_state_dict(loop.course.best)
        if is_first():
            run.write_manifest({**facts, "training": summary})
            run.write_timings({"training_seconds": loop.course.seconds})
            self.bottleneck.save_pretrained(
                run.path, model=self.config.model, table_hash=self.session.model.table_hash
            )
            run.state.drop()
        self.accelerator.wait_for_everyone()

    def _provenance(self, run: Run) -> dict[str, Any]:
        """What was trained on what: seed, plugins, hashes of table and questions, tokens."""
        session, stages = self.session, self.bottleneck.stages
        components: dict[str, Component] = {f"compressors.{i}": stage for i, stage in enumerate(stages)}
        components["adapter"] = self.bottleneck.adapter
        components |= {f"losses.{name}": loss for name, loss in self.objective.losses.items()}
        plugins = {}
        for part, component in components.items():
            distribution, version = load_plugins().owner(type(component))
            plugins[part] = {
                "name": component.name,
                "distribution": distribution,
                "version": version,
                "source_sha256": source_sha256(type(component)),
            }
        begun = (run.path / "manifest.json").exists()  # then the run that it started from may be gone
        source = run if begun else self.config.init and Run(self.config.init)
        before = source.read_manifest() if source else {}
        return {
            "seed": self.config.seed,
            "device": str(session.device),
            "attention": session.model.attention,
            "processes": self.accelerator.num_processes,
            "plugins": plugins,
            "hashes": {"embedding_table": session.model.table_hash, "test_questions": session.data.sha256},
            "tokens": {"distinct": len(self.stats.ids), "crossing": int(self.stats.weights.sum())},
            "batches": "distinct tokens" if self.fast else "prompts",
            # Weights that saw the answers once carry the mark, whatever they were trained on later.
            "teacher_forced": self.objective.teacher_forced or before.get("teacher_forced", False),
        }

    def _start(self) -> None:
        """Begin with the closed forms, or with what another run has learned."""
        if self.config.init is not None:
            self.bottleneck.start_from(self.config.init, self.session.table)
            self.bottleneck.see(self.stats.ids, self.session.table)
            return
        with self.progress.task(f"Fitting {self.bottleneck.compressor.name}"):
            self.bottleneck.fit(self.stats, self.session.table, self.progress)
        self._refuse_unloadable()

    def _refuse_unloadable(self) -> None:
        """Say it before the training where an evaluation could not load what was trained.

        Raises:
            PluginError: fitting gave a component parameters or buffers that a new one does not have.
        """
        width = self.session.table.shape[1]
        fresh = Bottleneck.build(self.resolved, self.config.magnitude, width, self.config.seed)
        fitted = [*self.bottleneck.stages, self.bottleneck.adapter]
        for ours, new in zip(fitted, [*fresh.stages, fresh.adapter], strict=True):
            try:
                new.load_state_dict(ours.state_dict())
            except RuntimeError as error:
                owner, why = load_plugins().owner(type(ours)), str(error).partition(":")[2]
                raise PluginError(
                    f"The plugin {ours.name!r} of {owner} cannot be loaded again once it is fitted: {why}",
                    "All its parameters and buffers must be there, in their shapes, when it is built.",
                ) from None

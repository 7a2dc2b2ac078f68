"""A run's training: one phase, or a second one where the first leaves too much of the LLM's F1 behind.

The first of two phases is a complete run of its own in RUN/phase1. What was decided after it is written
down, so that a run that was killed at any moment goes on as it would have gone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from stage1.bottleneck.statistics import count_tokens
from stage1.config import Phase, RunConfig
from stage1.data.datasets import TrainedOn, spread
from stage1.errors import TrainingError
from stage1.evaluation.answers import Answering
from stage1.evaluation.conditions import Condition, through
from stage1.files import read_record, write_atomic, write_record
from stage1.plugins import Resolved, load_plugins
from stage1.processes import from_first, is_first
from stage1.runs.run import METRICS, TIMINGS, Run
from stage1.session import Session
from stage1.training.trainer import Trainer

FIRST = "phase1"
"""Folder of the first of two phases, inside the run's own."""

TAKEN_OVER = (METRICS, TIMINGS, "bottleneck.safetensors", "bottleneck.json")
"""What a run is given that ends with its first phase; the last file is what says that it is trained."""


class Decision(NamedTuple):
    """What came of the first phase on the selection split, and what follows; F1 is 0 to 100."""

    text: float
    bottleneck: float
    ratio: float | None  # None: the bare model's F1 is 0, and no training changes that
    below: float
    goes_on: bool
    n: int

    @classmethod
    def of(cls, text: float, bottleneck: float, below: float, n: int) -> "Decision":
        """Go on where the bottleneck's share of the text row's F1 is under `below`."""
        ratio = bottleneck / text if text else None
        return cls(text, bottleneck, ratio, below, ratio is not None and ratio < below, n)

    @property
    def reason(self) -> str:
        """Why a second phase was run, or was not."""
        if self.ratio is None:
            return f"the bare model answers none of {self.n} selection questions"
        asked = "under" if self.goes_on else "not under"
        return (
            f"phase 1 kept {100 * self.ratio:.1f} % of the text row's F1 on {self.n} selection questions, "
            f"{asked} {100 * self.below:g} %"
        )


@contextmanager
def announced(run: Run, config: RunConfig) -> Iterator[None]:
    """Tell the event plugins when a run begins and how it ended; of several processes, the first does."""
    if not is_first():
        yield
        return
    registry, step, status = load_plugins(), run.step, "failed"
    try:
        registry.emit("stage1_run_start", run=run.path, config=config, step=step)
        yield
        status = "done"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        registry.emit("stage1_run_end", run=run.path, status=status)


class Training:
    """Everything between a configuration and the saved bottleneck.

    Args:
        resolved: the plugins of the session's configuration, which is fully resolved.
        session: the model's table, the data and, where `ask`, the LLM.
        ask: have the LLM answer selection questions at every measurement.
        resume: the run that goes on; None: a new one.

    Raises:
        UsageError: the LLM, the prompts or `config.init` cannot be used.
    """

    def __init__(self, resolved: Resolved, session: Session, *, ask: bool, resume: Run | None = None) -> None:
        self.config, self.resolved, self.session, self.ask = session.config, resolved, session, ask
        config = self.config
        self._opening: Trainer | None = None
        if resume is None or config.then is None or not Run(resume.path / FIRST).trained:
            self._opening = self._trainer(config.model_copy(update={"then": None}), resolved)
            if resume is None and config.init is not None:
                # Training does it again; here it is said before there is a folder that does not fit.
                self._opening.bottleneck.start_from(config.init, session.table)
                before = Run(config.init)
                self._trained_on(before)
                before.read_manifest()

    def _trainer(self, config: RunConfig, resolved: Resolved) -> Trainer:
        return Trainer(resolved, self.session.under(config), ask=self.ask)

    def train(self, run: Run) -> None:
        """Train in the folder `run`, or go on there."""
        if is_first():
            run.write_config(self.config)
            run.write_trained_on(self._trained_on(run))
        if self.config.then is not None:
            self._two_phases(run, self.config.then)
        elif self._opening is not None:
            self._opening.train(run)

    def _trained_on(self, run: Run) -> TrainedOn:
        """The data, and the passages that the bottleneck to start from has seen, as far as `run` knows them.

        A run that is resumed knows them itself: the one that it started from may be gone.
        """
        data = self.session.data.trained_on
        places = [path for path in (run.path, self.config.init) if path and (path / "data.json").is_file()]
        passages = (Run(path).read_trained_on().passages for path in places)
        return data._replace(passages=data.passages.union(*passages))

    def _two_phases(self, run: Run, then: Phase) -> None:
        first = Run(run.path / FIRST)
        if self._opening is not None:
            self._first_phase(self._opening, run, first)
        self._opening = None  # the second phase needs the memory
        decision = self._decide(first, then.below)
        phases = _facts(self.config, then, decision)
        reason = decision.reason[0].upper() + decision.reason[1:]
        if not decision.goes_on:
            self.session.progress.note(f"{reason}: training ends here.")
            if is_first():
                write_record(run.path / "manifest.json", {**first.read_manifest(), "phases": phases})
                for name in TAKEN_OVER:
                    if name == METRICS and not (first.path / name).exists():
                        continue
                    write_atomic(run.path / name, (first.path / name).read_bytes())
            from_first(None, self.session.device)  # the others read it next
            return
        self.session.progress.note(f"{reason}: phase 2 runs.")
        # The path is made up anew each time: the run's folder may have been moved.
        changed = {"losses": then.losses, "train": then.train, "init": first.path, "then": None}
        resolved = self.resolved._replace(losses=self.resolved.then_losses, then_losses={})
        trainer = self._trainer(self.config.model_copy(update=changed), resolved)
        with _remedy(run, f"then.train.lr={then.train.lr / 10:g}"):
            trainer.train(run, phases=phases)
        if is_first():
            both = [phase.read_timings()["training_seconds"] for phase in (first, run)]
            run.write_timings({"training_seconds": sum(both)})

    def _first_phase(self, trainer: Trainer, run: Run, first: Run) -> None:
        if is_first():
            first.prepare(trainer.config)
            first.write_trained_on(self._trained_on(run))
        trainer.accelerator.wait_for_everyone()
        with (
            first.lock(),
            announced(first, trainer.config),
            _remedy(run, f"train.lr={trainer.config.train.lr / 10:g}"),
        ):
            trainer.train(first)

    def _decide(self, first: Run, below: float) -> Decision:
        """What was decided after the first phase, measured now where it was not yet."""
        path = first.path / "selection.json"
        device = self.session.device
        if not from_first(path.exists(), device):
            decision = kept_of_text(first, self.session, below)  # all processes share the questions
            if is_first():
                write_record(path, decision._asdict())
        again = "Remove it: --resume evaluates it again."
        return Decision(**from_first(read_record(path, again) if is_first() else {}, device))


def kept_of_text(first: Run, session: Session, below: float) -> Decision:
    """F1 of at most `eval.limit` selection questions as text, and through the first phase's bottleneck."""
    questions = spread(session.data.selection, session.config.eval.limit)
    prompts = session.prompts(questions)
    bottleneck = session.load_bottleneck(first)
    embed = through(bottleneck, bottleneck.reconstruct, session, count_tokens(prompts, session.table))
    answering = Answering(session, None)
    text, ours = (
        float(answering.f1(condition, questions).mean())
        for condition in (
            Condition("text", prompts, None, None),
            Condition("bottleneck", prompts, embed, None),
        )
    )
    return Decision.of(text, ours, below, len(questions))


@contextmanager
def _remedy(run: Run, setting: str) -> Iterator[None]:
    """Name the whole run, not its phase, where training left the finite numbers."""
    try:
        yield
    except TrainingError as error:
        remedy = f"Lower the learning rate and resume: stage1 train --resume --output {run.path}"
        raise TrainingError(error.problem, f"{remedy} --set {setting}") from None


def _facts(config: RunConfig, then: Phase, decision: Decision) -> list[dict[str, Any]]:
    """What manifest.json and results.json say of the two phases."""
    return [
        {
            "phase": 1,
            "losses": list(config.losses),
            "trained": True,
            "selection": decision._asdict(),
        },
        {
            "phase": 2,
            "losses": list(then.losses),
            "trained": decision.goes_on,
            "reason": decision.reason,
        },
    ]

"""What the commands do, as functions: train a run, evaluate a run."""

import os
from collections.abc import Collection, Mapping, Sequence
from shlex import quote
from typing import TYPE_CHECKING, Any, NamedTuple

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from stage1.config import RunConfig, flat
from stage1.errors import ConfigError, ConfigIssue, Stage1Error
from stage1.evaluation.evaluate import Evaluation, evaluate
from stage1.files import default_cache
from stage1.plugins import fully_resolved, load_plugins, resolve
from stage1.plugins.blame import attributed
from stage1.progress import Progress
from stage1.runs.folder import refuse_taken
from stage1.runs.run import Run
from stage1.session import Session, changed
from stage1.training.phases import Training, announced
from stage1.training.trainer import make_accelerator

if TYPE_CHECKING:  # lm-eval takes a second to load, which only its own tasks need
    from stage1.evaluation.lm_eval.evaluate import TaskEvaluation, TaskOptions

CHANGEABLE = ("train.", "then.train.", "eval.", "device", "output", "log_with", "model.trust_remote_code")
"""Settings that may change when a run is resumed; any other makes it another run."""


class Outcome(NamedTuple):
    """What a command has to show for itself."""

    run: Run
    evaluation: Evaluation | None
    session: Session  # whose model the next command can use on


@attributed()
def train_run(
    config: RunConfig,
    progress: Progress,
    *,
    resume: Run | None = None,
    with_evaluation: bool = True,
    rows: Collection[str] | None = None,
    session: Session | None = None,
) -> Outcome:
    """Train a bottleneck, save it in a run directory, and evaluate it.

    Everything that can be wrong with the request is found before anything is written. `rows` are those to
    ask in the evaluation, see `evaluate`. The model of `session`, an earlier command's, is used on where it
    is the same.

    Raises:
        UsageError: the configuration, model, data or folder cannot be used.
        PluginError: a third party's plugin raised; the run can be resumed.
        TrainingError: the loss left the finite numbers; the run can be resumed.
    """
    require_trackers(config)
    registry = load_plugins()
    resolved = resolve(config, registry)
    config = fully_resolved(config, resolved)
    losses = [*resolved.losses.values(), *resolved.then_losses.values()]
    asks = with_evaluation or config.then is not None or any(loss.cls.needs_llm for loss in losses)
    if (
        resume is None and os.environ.get("LOCAL_RANK", "0") == "0"
    ):  # of several processes, the first makes it
        refuse_taken(config.output)
    session = Session.open(config, progress, weights="all" if asks else "table", before=session)
    if resume is not None and resume.trained:
        progress.note(f"{resume.path} is trained already.")
        if not with_evaluation:
            return Outcome(resume, None, session)
        with announced(resume, config, registry, main=make_accelerator(session.device).is_main_process):
            return Outcome(resume, _evaluate(resume, session, rows=rows), session)
    training = Training(config, resolved, session, registry, progress, ask=with_evaluation, resume=resume)
    run = _shared_run(config, resume)
    main = training.main
    with run.lock(ours=main), announced(run, training.config, registry, main=main):
        _train_watched(training, run)
        if not with_evaluation or not main:
            return Outcome(run, None, session)
        return Outcome(run, _evaluate(run, session, rows=rows), session)


def require_trackers(config: RunConfig) -> None:
    """Refuse a run that is to be told to an experiment tracker (`log_with`) that cannot be used here.

    Raises:
        UsageError: with what to install.
    """
    for name in config.log_with:
        load_plugins().tracker(name).require()


def _shared_run(config: RunConfig, resume: Run | None) -> Run:
    """The run's folder, made by the first process and known to all."""
    if resume is not None:
        return resume
    state = PartialState()
    made: list[Any] = [None]
    if state.is_main_process:
        try:
            made = [Run.create(config).path]
        except Stage1Error as error:
            made = [error]
    broadcast_object_list(made)
    if isinstance(made[0], Stage1Error):
        raise made[0]
    return Run(made[0])


def _train_watched(training: Training, run: Run) -> None:
    """Train, saying how to go on where it was interrupted or a plugin raised."""
    go_on = f"stage1 train --resume --output {quote(str(run.path))}"
    try:
        with attributed(f"Resume the run: {go_on}"):
            training.train(run)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Resume with: {go_on}") from None


def resume_run(run: Run, given: RunConfig) -> RunConfig:
    """The configuration to resume `run` with: its own, where `given` changes only what may change.

    Raises:
        ConfigError: `given` asks for another run, with every difference.
    """
    stored, wanted = (flat(c.model_dump(mode="json")) for c in (run.config, given))
    issues = [
        ConfigIssue(
            key, f"the run has {stored.get(key)!r}, you ask for {wanted.get(key)!r}; start a new run."
        )
        for key in sorted(stored.keys() | wanted.keys())
        if stored.get(key) != wanted.get(key) and not key.startswith(CHANGEABLE)
    ]
    if issues:
        raise ConfigError(issues)
    return given


PROTOCOL = {"prompt", "scope", "raw_anchor", "keep_special", "magnitude"}
"""Settings that say how questions are put and what crosses the bottleneck."""


@attributed()
def evaluate_run(run: Run, overrides: Mapping[str, Any], progress: Progress) -> Outcome:
    """Evaluate a trained run from its folder alone.

    `overrides` (dotted path → value) may name where the model lies, other data, a limit, a batch size, a
    device, or other rules for what crosses (`PROTOCOL`). Results on the run's own questions and under its
    own rules go into its folder; others are only returned. Data are the run's own by their content, whatever
    their name; of others, questions about passages that the run was trained on are left out.

    Raises:
        UsageError: the run is not trained, its checkpoint is damaged, or an override cannot be used.
    """
    config = changed(run, overrides)
    session, own = open_session(run, config, progress)
    keep = own and config.eval.limit == run.config.eval.limit
    return Outcome(run, _evaluate(run, session, keep=keep), session)


def open_session(run: Run, config: RunConfig, progress: Progress) -> tuple[Session, bool]:
    """A trained run's model with the questions of `config`, and whether what comes of them is the run's own.

    It is where the questions are, by their content, those that the run keeps for its evaluation, and are put
    and cross as in the run. Of other questions, those about passages that the run has seen are left out.

    Raises:
        UsageError: model or data cannot be used, or the run's record of its data is damaged.
    """
    own, trained_on = run.config, run.read_trained_on()
    session = Session.open(config, progress, trained_on=trained_on, example_data=own.data)
    other_data = session.data.sha256 != trained_on.test
    if other_data and config.data == own.data:
        progress.note(f"{own.data.name} is no longer what the run was trained on; its own results are kept.")
    same_rules = config.model_dump(include=PROTOCOL) == own.model_dump(include=PROTOCOL)
    return session, same_rules and not other_data


@attributed()
def evaluate_run_tasks(
    run: Run,
    overrides: Mapping[str, Any],
    requested: Sequence[str],
    options: "TaskOptions",
    progress: Progress,
) -> "TaskEvaluation":
    """Ask lm-eval tasks of the bare model and through a trained run's bottleneck.

    Each task's results, and what was asked and answered, replace RUN/tasks/TASK.

    Args:
        run: a trained one.
        overrides: as `evaluate_run`.
        requested: names, patterns and files of tasks.
        options: how they are asked.
        progress: told of every request.

    Raises:
        UsageError: as `evaluate_run`; a task is unknown, or cannot be loaded.
    """
    run.require_trained()
    from stage1.evaluation.lm_eval.catalogue import select
    from stage1.evaluation.lm_eval.evaluate import evaluate_tasks

    selection = select(requested, load_plugins(), progress, options.metadata)
    session = Session.open(changed(run, overrides), progress, data="none")
    evaluation = evaluate_tasks(
        session.load_bottleneck(run), session, selection, options, cache=default_cache()
    )
    evaluation.results["teacher_forced"] = run.read_manifest().get("teacher_forced", False)
    run.write_tasks(evaluation.results, evaluation.samples)
    return evaluation


def _evaluate(
    run: Run, session: Session, *, keep: bool = True, rows: Collection[str] | None = None
) -> Evaluation:
    """Ask the questions through the bottleneck as it was saved; with `keep` the run gets the results."""
    evaluation = evaluate(session.load_bottleneck(run), session, cache=default_cache(), rows=rows)
    manifest = run.read_manifest()
    evaluation.results["teacher_forced"] = manifest.get("teacher_forced", False)
    evaluation.results.update({key: manifest[key] for key in ("training", "phases") if key in manifest})
    if keep:
        run.write_evaluation(evaluation.results, evaluation.answers)
    load_plugins().emit("stage1_evaluated", run=run.path, results=evaluation.results)
    return evaluation

"""What the commands do, as functions: train a run, evaluate a run."""

import traceback
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, is_tensorboard_available, is_wandb_available

from stage1.config import RunConfig, flat
from stage1.errors import ConfigError, ConfigIssue, PluginError, Stage1Error, UsageError
from stage1.evaluation.evaluate import Evaluation, evaluate
from stage1.files import default_cache
from stage1.plugins import Registry, fully_resolved, load_plugins, resolve
from stage1.plugins.interfaces import Component
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.session import Session, changed
from stage1.training.phases import Training, announced
from stage1.training.trainer import make_accelerator

if TYPE_CHECKING:  # lm-eval takes a second to load, which only its own tasks need
    from stage1.evaluation.lm_eval.evaluate import TaskEvaluation, TaskOptions

CHANGEABLE = ("train.", "then.train.", "eval.", "device", "output", "log_with")
"""Settings that may change when a run is resumed; any other makes it another run."""


class Outcome(NamedTuple):
    """What a command has to show for itself."""

    run: Run
    evaluation: Evaluation | None
    session: Session  # whose model the next command can use on


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
    """Refuse a run that is to be told to an experiment tracker (`log_with`) whose package is not there.

    Raises:
        UsageError: with what to install.
    """
    there = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
    if missing := [name for name in there if name in config.log_with and not there[name]()]:
        raise UsageError(
            f"--log-with {' and '.join(missing)}: not installed.",
            f'Install it: pip install "stage1[{",".join(missing)}]"',
        )


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
    """Train, naming the plugin that raised."""
    try:
        training.train(run)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Go on with: stage1 train --resume --output {run.path}") from None
    except Stage1Error:
        raise
    except Exception as error:
        if (blamed := _blame(error, training.registry)) is None:
            raise
        raise PluginError(blamed, f"The run can go on: stage1 train --resume --output {run.path}") from error


def _blame(error: Exception, registry: Registry) -> str | None:
    """Whose plugin raised `error`, and where; None where it was none, or one of our own."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        component = frame.f_locals.get("self")
        if isinstance(component, Component):
            owner = registry.owner(type(component))
            if owner.distribution == "stage1":
                continue  # a chain, for one, only hands on what its compressors raise
            last = traceback.extract_tb(error.__traceback__)[-1]
            return (
                f"The plugin {component.name!r} of {owner} raised {type(error).__name__}: {error} "
                f"({Path(last.filename).name}, line {last.lineno})."
            )
    return None


def resume_run(run: Run, given: RunConfig) -> RunConfig:
    """The configuration to resume `run` with: its own, where `given` changes only what may change.

    Raises:
        ConfigError: `given` asks for another run, with every difference.
    """
    # A link without options leaves nothing in a flat tree, and the links' order matters.
    stored, wanted = (
        {"chain": list(c.chain), **flat(c.model_dump(mode="json"))} for c in (run.config, given)
    )
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


def evaluate_run(run: Run, overrides: Mapping[str, Any], progress: Progress) -> Outcome:
    """Evaluate a trained run from its folder alone.

    `overrides` (dotted path → value) may name where the model lies, other data, a limit, a batch size, a
    device, or other rules for what crosses (`PROTOCOL`). Results on the run's own questions and under its
    own rules go into its folder; others are only returned.

    Raises:
        UsageError: the run is not trained, its checkpoint is damaged, or an override cannot be used.
    """
    own, config = run.config, changed(run, overrides)
    other_data = config.data.name != own.data.name
    session = Session.open(
        config,
        progress,
        data="all test" if other_data else "splits",
        example_data=own.data if other_data else None,
    )
    same_rules = config.model_dump(include=PROTOCOL) == own.model_dump(include=PROTOCOL)
    keep = not other_data and config.eval.limit == own.eval.limit and same_rules
    return Outcome(run, _evaluate(run, session, keep=keep), session)


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
    if "phases" in manifest:
        evaluation.results["phases"] = manifest["phases"]
    if keep:
        run.write_evaluation(evaluation.results, evaluation.predictions)
    load_plugins().emit("stage1_evaluated", run=run.path, results=evaluation.results)
    return evaluation

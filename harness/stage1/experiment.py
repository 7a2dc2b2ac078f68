"""What the commands do, as functions: train a run, evaluate a run."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from stage1.config import RunConfig, flat
from stage1.errors import ConfigError, ConfigIssue, Stage1Error, UsageError
from stage1.evaluation.evaluate import Evaluation, evaluate, task_name
from stage1.evaluation.rate import timing
from stage1.files import default_cache
from stage1.llm.model import check_llm, device_name
from stage1.plugins import fully_resolved, load_plugins, resolve
from stage1.plugins.blame import attributed
from stage1.processes import from_first, is_first, several
from stage1.progress import Progress
from stage1.runs.folder import own_place, refuse_taken
from stage1.runs.run import OTHERS, Run
from stage1.session import Session, changed, found_anywhere
from stage1.training.phases import Training, announced

if TYPE_CHECKING:  # lm-eval takes a second to load, which only its own tasks need
    from stage1.evaluation.lm_eval.evaluate import TaskEvaluation, TaskOptions

CHANGEABLE = (
    *("train.", "then.train.", "eval.", "device", "output", "log_with", "model.trust_remote_code"),
    *("model.name", "data.name", "data.train_from"),  # where they lie; what they are is compared by content
)
"""Settings that may change when a run is resumed; any other makes it another run."""


class Outcome(NamedTuple):
    """What a command has to show for itself."""

    run: Run
    evaluation: Evaluation | None
    session: Session  # whose model the next command can use on
    kept: Path | None = None  # the folder that holds the results
    timings: Mapping[str, Any] = MappingProxyType({})  # how long training took, and what was just measured


@attributed()
def train_run(
    config: RunConfig,
    progress: Progress,
    *,
    resume: Run | None = None,
    with_evaluation: bool = True,
    rows: Collection[str] | None = None,
    session: Session | None = None,
    same_questions: bool = False,
) -> Outcome:
    """Train a bottleneck, save it in a run directory, and evaluate it.

    Everything that can be wrong with the request is found before anything is written. `rows` are those to
    ask in the evaluation, see `evaluate`. The model of `session`, an earlier command's, is used on where it
    is the same; its questions too, unread, where the caller knows that model and questions are the same.

    Raises:
        UsageError: the configuration, model, data or folder cannot be used.
        PluginError: a third party's plugin raised; the run can be resumed.
        TrainingError: the loss left the finite numbers; the run can be resumed.
    """
    progress.restart()
    require_trackers(config)
    resolved = resolve(config, load_plugins())
    config = found_anywhere(fully_resolved(config, resolved))
    losses = [*resolved.losses.values(), *resolved.then_losses.values()]
    readers = [*(loss.cls for loss in losses), *(stage.cls for stage in resolved.compressors)]
    asks = with_evaluation or config.then is not None or any(cls.needs_llm for cls in readers)
    if resume is None and is_first():
        refuse_taken(config.output)
    if session is not None and same_questions:
        session = session.under(config)
    else:
        session = Session.open(config, progress, weights="all" if asks else "table", before=session)
    if not asks:  # what an evaluation will refuse is said before the training
        local = Path(config.model.name).is_absolute()
        check_llm(session.model.folder, config.model.trust_remote_code, whole=local)
    if resume is not None:
        _refuse_other_inputs(resume, session)
    if resume is not None and resume.trained:
        progress.note(f"{resume.path} is trained already.")
        if not with_evaluation:
            return Outcome(resume, None, session)
        with announced(resume, config):
            return _evaluate(resume, session, "train", rows=rows)
    training = Training(resolved, session, ask=with_evaluation, resume=resume)
    run = _shared_run(config, resume, session.device)
    with run.lock(), announced(run, config):
        command = f"stage1 train --resume --output {quote(str(run.path))}"
        with _resumable(command):
            with attributed(f"Resume the run: {command}"):
                training.train(run)
            if not with_evaluation:
                return Outcome(run, None, session)
            return _evaluate(run, session, "train", rows=rows)


def _refuse_other_inputs(run: Run, session: Session) -> None:
    """Refuse to go on with another model or other data than the run was begun with, whatever their names.

    Raises:
        UsageError: by what they are known; nothing is where the run did not come so far.
    """
    if (run.path / "data.json").exists() and run.read_trained_on().content != session.data.content:
        raise UsageError(
            f"The data in {session.config.data.name} are not those that {run.path} was begun with.",
            "Say where those are with --data, or start a new run.",
        )
    if (run.path / "manifest.json").exists():
        begun_with = run.read_manifest()["hashes"]["embedding_table"]
        if begun_with != session.model.table_hash:
            raise UsageError(
                f"The model {session.config.model.name} is not the one that {run.path} was begun with.",
                "Say where that one is with --model, or start a new run.",
            )


def require_trackers(config: RunConfig) -> None:
    """Refuse a run that is to be told to an experiment tracker (`log_with`) that cannot be used here.

    Raises:
        UsageError: with what to install.
    """
    for name in config.log_with:
        load_plugins().get("tracker", name).require()


def _shared_run(config: RunConfig, resume: Run | None, device: torch.device) -> Run:
    """The run's folder, made by the first process and known to all."""
    if resume is not None:
        return resume
    made: Path | Stage1Error = Path()
    if is_first():
        try:
            made = Run.create(config).path
        except Stage1Error as error:
            made = error
    made = from_first(made, device)
    if isinstance(made, Stage1Error):
        raise made
    return Run(made)


@contextmanager
def _resumable(how: str) -> Iterator[None]:
    """Say how to go on after an interruption: what is done is kept, and not done again."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Resume with: {how}") from None


def resume_run(run: Run, given: RunConfig) -> RunConfig:
    """The configuration to resume `run` with: its own, where `given` changes only what may change.

    Raises:
        ConfigError: `given` asks for another run, with every difference.
    """
    given = found_anywhere(given)
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
def evaluate_run(
    run: Run, overrides: Mapping[str, Any], progress: Progress, rows: Collection[str] | None = None
) -> Outcome:
    """Evaluate a trained run from its folder alone.

    `overrides` (dotted path → value) may name where the model lies, other data, a limit, a batch size, a
    device, or other rules for what crosses (`PROTOCOL`); `rows` are those to ask, see `evaluate`. Results on
    the run's own questions and under its own rules go into its folder, others, and those that lack rows which
    are there, to a place of their own below RUN/evaluations. Data are the run's own by their content,
    whatever their name; of others, questions about passages that the run was trained on are left out.

    Raises:
        UsageError: the run is not trained, its checkpoint is damaged, or an override cannot be used.
    """
    progress.restart()
    config = changed(run, overrides)
    session, own = open_session(run, config, progress)
    own = own and config.eval.limit == run.config.eval.limit and _replaceable(run, rows)
    return _evaluate(run, session, "eval", own=own, rows=rows)


def _replaceable(run: Run, rows: Collection[str] | None) -> bool:
    """Whether the results in a folder have no row that an evaluation of `rows` lacks."""
    there = run.read_results()
    return rows is None or there is None or {row["row"] for row in there["rows"]} <= {*rows}


ELSEWHERE: Any = {
    "device": True,
    "output": True,
    "log_with": True,
    "model": True,
    "data": {"name", "train_from"},
    "eval": {"batch_size"},
}
"""Settings that may differ between two evaluations whose results are the same."""


def _place_for(run: Run, session: Session, asked: Collection[str] | None) -> Run:
    """The folder below `run` for an evaluation under other rules: the one that the same had, or a new one.

    It holds what a run's does: configuration, what the data are known by, results and answers.
    """
    config, data = session.config, session.data

    def same(place: Path) -> bool:
        if not all((place / name).exists() for name in ("config.yaml", "data.json")):  # killed while made
            return True
        try:
            there, content = Run(place).config, Run(place).read_trained_on().test
            replaceable = _replaceable(Run(place), asked)
        except UsageError:
            return False
        rules, wanted = (c.model_dump(exclude=ELSEWHERE) for c in (there, config))
        return content == data.sha256 and rules == wanted and replaceable

    other = Run(own_place(run.path / OTHERS, task_name(session), same))
    other.prepare(config)
    other.write_trained_on(data.trained_on)
    return other


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

    Each task's results, and what was asked and answered, go to RUN/tasks, in a place of their own where the
    rules, examples or documents are others than before.

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
    if several():
        raise UsageError("Tasks are asked by one process.", "Leave out `accelerate launch`.")
    from stage1.evaluation.lm_eval.catalogue import select
    from stage1.evaluation.lm_eval.evaluate import evaluate_tasks

    selection = select(requested, load_plugins(), progress, options.metadata)
    session = Session.open(changed(run, overrides), progress, data="none")
    with _resumable("the same command"):
        evaluation = evaluate_tasks(
            session.load_bottleneck(run), session, selection, options, cache=default_cache()
        )
    evaluation.results["teacher_forced"] = run.read_manifest().get("teacher_forced", False)
    run.write_tasks(evaluation.results, evaluation.samples)
    return evaluation


def _evaluate(
    run: Run,
    session: Session,
    command: str,
    *,
    own: bool = True,
    rows: Collection[str] | None = None,
) -> Outcome:
    """Ask the questions through the bottleneck as it was saved, for `stage1 COMMAND`.

    The run gets the results that are its `own`; others go to a place below it.
    """
    bottleneck, manifest = session.load_bottleneck(run), run.read_manifest()
    with _resumable("the same command"):
        evaluation = evaluate(
            bottleneck, session, cache=default_cache(), rows=rows, training=manifest.get("training")
        )
    evaluation.results["teacher_forced"] = manifest.get("teacher_forced", False)
    evaluation.results.update({key: manifest[key] for key in ("training", "phases") if key in manifest})
    place = run if own else _place_for(run, session, rows)
    measured = {
        **timing(bottleneck, session),
        "questions_per_second": {row: speed for row, speed in evaluation.throughput.items() if speed},
        "device": device_name(session.device),
    }
    if is_first():
        seconds, shares = session.progress.shares()
        time = {**run.read_timings().get("time", {}), command: {"seconds": seconds, "shares": shares}}
        place.write_timings({**measured, "time": time})
        place.write_evaluation(evaluation.results, evaluation.answers)  # last: it says that all is there
        run.tidy()
        load_plugins().emit("stage1_evaluated", run=run.path, results=evaluation.results)
    return Outcome(run, evaluation, session, place.path, {**run.read_timings(), **measured})

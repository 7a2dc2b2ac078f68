"""stage1 from Python: every command is a function, its arguments are those of the configuration.

import stage1

run = stage1.train(compressor="pca", adapter="residual")
print(run.results["bottleneck"].f1, run.results.verdict.text)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from stage1.config import flat, merge, read_yaml, validate
from stage1.config.presets import PROTOCOLS, from_presets
from stage1.diagnosis.diagnose import diagnose_run
from stage1.diagnosis.findings import Finding
from stage1.evaluation import conditions
from stage1.experiment import Outcome, evaluate_run, train_run
from stage1.inspection.compare import Compared, compare_runs
from stage1.inspection.questions import Asked, Kind, evaluated
from stage1.inspection.questions import questions as asked_of
from stage1.inspection.verify import Verified, verify_run
from stage1.progress import Progress
from stage1.reports.frontier import Frontier
from stage1.runs.results import Results
from stage1.runs.run import Run
from stage1.session import Session, changed
from stage1.sweeps.frontier import Explorer, Request
from stage1.sweeps.grid import Axis, plan
from stage1.sweeps.report import write_report
from stage1.sweeps.sweep import Sweep
from stage1.sweeps.worker import executor


@dataclass(frozen=True)
class Evaluated:
    """A trained run, and what an evaluation found.

    Attributes:
        path: the run's folder.
        results: as `results.json` holds them; None where no evaluation was wanted.
        answers: condition → question id → the LLM's answer.
        session: model and questions; hand it to the next call, and the LLM is not loaded again.
        timings: how long training, encoding and decoding took, as in timings.json.
    """

    path: Path
    results: Results | None
    answers: Mapping[str, Mapping[str, str]]
    session: Session
    timings: Mapping[str, Any]

    @classmethod
    def _of(cls, outcome: Outcome) -> "Evaluated":
        path, evaluation = outcome.run.path, outcome.evaluation
        if evaluation is None:
            return cls(path, None, {}, outcome.session, outcome.timings)
        results = Results.model_validate(evaluation.results)
        return cls(path, results, evaluation.predictions, outcome.session, outcome.timings)


RunLike = Evaluated | str | PathLike[str]
"""What `train` returned, or a run's folder."""


@dataclass(frozen=True)
class Diagnosis:
    """Why F1 is what it is: findings, the one that explains most first."""

    clean: bool  # nothing but notes
    findings: Sequence[Finding]
    measured: Mapping[str, Any]  # every probe's numbers, as diagnosis.json holds them


def train(
    config: Mapping[str, Any] | str | PathLike[str] | None = None,
    *,
    recipe: str | None = None,
    protocol: str | None = None,
    with_evaluation: bool = True,
    rows: Sequence[str] | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    session: Session | None = None,
    **settings: Any,
) -> Evaluated:
    """Train a bottleneck and measure how much of the LLM's F1 survives it, as `stage1 train`.

    Args:
        config: a YAML file, or settings as one holds them.
        recipe: settings to start from, see `stage1 recipes`.
        protocol: prompt protocol, see `stage1 protocols`.
        with_evaluation: False trains only.
        rows: those to ask in the evaluation, with those that a verdict needs; None: all there are.
        trust_remote_code: run Python code that the model's folder brings; only what is said here counts.
        progress: told of the progress; None: nobody is.
        session: an earlier call's, whose model is used on where it is the same.
        **settings: any setting of the configuration: `model="smollm2"`, `compressor="pca"`,
            `train={"steps": 500}`, `seed=1`, `output="runs/mine"`. They override what the others say.

    Raises:
        UsageError: the settings, model, data or folder cannot be used; nothing is written then.
        PluginError: a plugin raised.
        TrainingError: the loss left the finite numbers.
    """
    file = read_yaml(Path(config)) if isinstance(config, str | PathLike) else config or {}
    tree = from_presets(file, {}, recipe=recipe, protocol=protocol)
    chosen = validate(merge(tree, settings, []))
    model = chosen.model.model_copy(update={"trust_remote_code": trust_remote_code})
    chosen = chosen.model_copy(update={"model": model})
    asked = None if rows is None else conditions.chosen(rows)
    outcome = train_run(
        chosen, progress or Progress(), with_evaluation=with_evaluation, rows=asked, session=session
    )
    return Evaluated._of(outcome)


def evaluate(
    run: RunLike,
    *,
    protocol: str | None = None,
    limit: int | None = None,
    rows: Sequence[str] | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Evaluated:
    """Evaluate a trained run again, as `stage1 eval`: on its own questions, other data or another protocol.

    Args:
        run: what `train` returned, or a run's folder.
        protocol: prompt protocol, see `stage1 protocols`; None: as in the run.
        limit: test questions at most; None: as in the run.
        rows: as for `train`.
        trust_remote_code: as for `train`.
        progress: told of the progress.
        **settings: what differs from the run's: `data="dev.json"`, `scope="context"`, `device="cuda"`.

    Raises:
        UsageError: the run is not trained or damaged, or a setting cannot be used.
    """
    overrides = _overrides(protocol, settings, trust_remote_code)
    if limit is not None:
        overrides["eval.limit"] = limit
    asked = None if rows is None else conditions.chosen(rows)
    return Evaluated._of(evaluate_run(Run.open(_path(run)), overrides, progress or Progress(), asked))


def diagnose(
    run: RunLike,
    *,
    protocol: str | None = None,
    limit: int = 200,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Diagnosis:
    """Why the F1 of a trained run is what it is, as `stage1 diagnose`; the arguments are those of `evaluate`.

    Raises:
        UsageError: the run is not trained or damaged, or a setting cannot be used.
    """
    opened = Run.open(_path(run))
    overrides = _overrides(protocol, settings, trust_remote_code)
    found = diagnose_run(opened, changed(opened, overrides), limit, progress or Progress())
    findings = [Finding(**finding) for finding in found["findings"]]
    return Diagnosis(found["clean"], findings, found["measured"])


def sweep(
    over: Mapping[str, Sequence[Any]],
    output: str | PathLike[str],
    *,
    seeds: Sequence[int] = (0,),
    jobs: int | None = None,
    on: str | None = None,
    on_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train and evaluate every combination of some settings' values, as `stage1 sweep`.

    Args:
        over: setting → its values, as in `{"compressor.ratio": [4, 8], "adapter": ["linear", "residual"]}`.
        output: where the runs go; the same folder resumes a sweep.
        seeds: every combination is run with each.
        jobs: runs at a time, each in a process of its own.
        on: where they are carried out: `local`, `ray`, `ray://HOST:PORT`, `slurm` or a plugin's executor.
        on_options: the executor's options.
        progress: told of the progress.
        **settings: for every run, as for `train`.

    Returns:
        What sweep.json holds: `cells`, one a run, and `averages` over the seeds.

    Raises:
        UsageError: a combination cannot be used; found before the first is trained.
    """
    axes = [Axis(key, list(values)) for key, values in over.items()]
    folder = Path(output)
    cells = plan(merge({}, settings, []), [], axes, seeds, folder)
    made = Sweep(folder, axes, cells)
    made.run(progress or Progress(), executor(on, jobs, on_options or {}))
    return made.record()


def compare(*runs: RunLike, by_seed: bool = False, force: bool = False) -> Compared:
    """Compare evaluated runs, paired on the questions that all were asked, as `stage1 compare`.

    Args:
        *runs: what `train` returned, or runs' folders; two at least.
        by_seed: runs that differ in their seed alone are one setting.
        force: compare runs of other data, protocols or models; `differences` names what differs.

    Raises:
        UsageError: a run is damaged or not evaluated, or they cannot be compared.
    """
    return compare_runs([_path(run) for run in runs], by_seed=by_seed, force=force)


def questions(run: RunLike, *kinds: Kind, search: str = "") -> Sequence[Asked]:
    """The questions of an evaluated run with gold answers and every row's answer, as `stage1 show`.

    Args:
        run: what `train` returned, or a run's folder.
        *kinds: only the `lost`, `gained` or `wrong` ones; several: what is any of them.
        search: only those in which this text stands.

    Raises:
        UsageError: the run is damaged or not evaluated.
    """
    return list(asked_of(*evaluated(_path(run)), kinds, search))


def verify(
    run: RunLike,
    *,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Verified:
    """Whether a run's results follow from its answers, its data, model and plugins, as `stage1 verify`.

    Args:
        run: what `train` returned, or a run's folder.
        trust_remote_code: as for `train`.
        progress: told what goes on.
        **settings: where things lie on this machine, if elsewhere: `model="…"`, `data="…"`.

    Raises:
        UsageError: there is no run, or none that was evaluated.
    """
    return verify_run(_path(run), _overrides(None, settings, trust_remote_code), progress or Progress())


def report(
    *places: RunLike,
    output: str | PathLike[str] = "report.html",
    progress: Progress | None = None,
) -> Path:
    """Write a report as one HTML file that needs no network and no other file, as `stage1 report`.

    Args:
        *places: what `train` returned, the folder of a run or of a sweep, or those of several runs.
        output: the file, which is replaced.
        progress: told what is read.

    Returns:
        Where the report is.

    Raises:
        UsageError: a place holds neither, a run is not trained or damaged, or `output` cannot be a file.
    """
    return write_report([_path(place) for place in places], Path(output), progress or Progress())


def frontier(
    over: Mapping[str, Sequence[Any]] | None = None,
    *,
    keep: float = 0.95,
    axis: Literal["bits", "ratio"] = "bits",
    budget: float | None = None,
    output: str | PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **settings: Any,
) -> Frontier:
    """Find the smallest rate at which a bottleneck keeps a share of the text F1, as `stage1 frontier`.

    Args:
        over: what methods differ in, as for `sweep`; None: one method.
        keep: the share.
        axis: what is to be small (`bits`) or large (`ratio`).
        budget: minutes; None: as many as it takes.
        output: where runs and results go, and where the same call goes on; None: a folder under `runs/`.
        seed: of every run.
        progress: told what goes on.
        **settings: for every method, as for `train`.

    Raises:
        UsageError: a method cannot be used, or nothing sets its rate; found before anything is trained.
    """
    axes = [Axis(key, list(values)) for key, values in (over or {}).items()]
    tree, folder = merge({}, settings, []), Path(output) if output else None
    request = Request(folder, tree, {}, [], axes, keep, axis, budget, seed)
    return Explorer(request, progress or Progress()).run()


def _overrides(protocol: str | None, settings: Mapping[str, Any], trusted: bool) -> dict[str, Any]:
    """What differs from a run's own settings; sections are changed key by key."""
    named = PROTOCOLS.find(protocol).settings if protocol else {}
    trust = {"model.trust_remote_code": True} if trusted else {}
    return {**flat(named), **flat(settings), **trust}


def _path(run: RunLike) -> Path:
    return run.path if isinstance(run, Evaluated) else Path(run)

"""Why is F1 what it is? Measurements on one bottleneck, and findings ordered by how much F1 they explain."""

from typing import Any

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.config import RunConfig
from stage1.data.datasets import spread
from stage1.diagnosis import (
    ablation,
    compressor,
    divergence,
    generation,
    objective,
    protocol,
    statistics,
    tokens,
)
from stage1.diagnosis.case import Case
from stage1.diagnosis.findings import findings
from stage1.experiment import open_session
from stage1.files import default_cache
from stage1.plugins import fully_resolved, load_plugins, resolve
from stage1.plugins.blame import attributed
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.session import Session

PROBES = (protocol, ablation, tokens, statistics, compressor, generation, objective, divergence)
"""What is measured, in this order; `diagnosis.json` holds what each measured under the name of its module."""


def diagnose(case: Case, run: str) -> dict[str, Any]:
    """Every measurement on `case`, and what follows from them: the content of diagnosis.json.

    Args:
        case: a bottleneck, questions and the LLM.
        run: how commands name it.
    """
    measured = {}
    for probe in PROBES:
        name = probe.__name__.rpartition(".")[2]
        with case.session.progress.task(f"Measuring: {name}"):
            measured[name] = probe.measure(case)
    found = findings(measured, run)
    return {
        "schema": 1,
        "run": run,
        "questions": len(case.questions),
        "clean": not any(finding.severity != "note" for finding in found),
        "findings": [finding._asdict() for finding in found],
        "measured": measured,
    }


@attributed()
def diagnose_run(run: Run, config: RunConfig, limit: int, progress: Progress) -> dict[str, Any]:
    """Diagnose a trained run; its folder gets the diagnosis of its own questions under its own rules.

    Args:
        run: the run.
        config: its configuration, where the model's place or the device may have been changed.
        limit: test questions asked, spread over passages.
        progress: told of every row asked.

    Raises:
        UsageError: it is not trained, or its checkpoint cannot be used with the model.
    """
    run.require_trained()
    session, own = open_session(run, config, progress)
    result = diagnose(_case(session.load_bottleneck(run), session, run.metrics(), limit), str(run.path))
    if own:
        run.write_diagnosis(result)
    return result


@attributed()
def diagnose_untrained(config: RunConfig, limit: int, progress: Progress) -> dict[str, Any]:
    """Diagnose what `config` names as it is before training: fitted and warm-started only.

    Raises:
        UsageError: the configuration, model or data cannot be used.
    """
    registry = load_plugins()
    resolved = resolve(config, registry)
    session = Session.open(fully_resolved(config, resolved), progress)
    bottleneck = Bottleneck.build(resolved, config.magnitude, session.table.shape[1], config.seed)
    case = _case(bottleneck.to(session.device), session, [], limit)
    with progress.task(f"Fitting {bottleneck.compressor.name}"):
        bottleneck.fit(case.fitted, session.table)
    bottleneck.requires_grad_(False).eval()
    return diagnose(case, "RUN")


def _case(bottleneck: Bottleneck, session: Session, metrics: list[dict[str, Any]], limit: int) -> Case:
    questions = spread(session.data.test, limit)
    return Case(bottleneck, session, questions, session.prompts(questions), metrics, default_cache())

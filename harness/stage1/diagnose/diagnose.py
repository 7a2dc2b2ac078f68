"""Why is F1 what it is? Measurements on one bottleneck, and findings ordered by how much F1 they explain."""

from typing import Any

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.config import RunConfig
from stage1.data.datasets import spread
from stage1.diagnose import (
    ablation,
    compressor,
    divergence,
    generation,
    objective,
    protocol,
    statistics,
    tokens,
)
from stage1.diagnose.case import Case
from stage1.diagnose.findings import findings
from stage1.evaluation.rows import load_model
from stage1.plugins import fully_resolved, load_plugins, resolve
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.session import Inputs, load_inputs

PROBES = {
    "protocol": protocol.measure,
    "ablation": ablation.measure,
    "tokens": tokens.measure,
    "statistics": statistics.measure,
    "compressor": compressor.measure,
    "generation": generation.measure,
    "objective": objective.measure,
    "divergence": divergence.measure,
}
"""What is measured, in this order; `diagnosis.json` holds each probe's findings under its name."""


def diagnose(case: Case, name: str) -> dict[str, Any]:
    """Every measurement on `case`, and what follows from them: the content of diagnosis.json.

    Args:
        case: a bottleneck, questions and the LLM.
        name: how commands name the run.
    """
    measured = {}
    for probe, measure in PROBES.items():
        with case.progress.task(f"Measuring: {probe}"):
            measured[probe] = measure(case)
    found = findings(measured, name)
    return {
        "schema": 1,
        "run": name,
        "questions": len(case.questions),
        "clean": not any(finding.severity != "note" for finding in found),
        "findings": [finding._asdict() for finding in found],
        "measured": measured,
    }


def diagnose_run(run: Run, config: RunConfig, limit: int, progress: Progress) -> dict[str, Any]:
    """Diagnose a trained run; its folder gets the diagnosis.

    Args:
        run: the run.
        config: its configuration, where the model's place or the device may have been changed.
        limit: test questions asked, spread over passages.
        progress: told of every row asked.

    Raises:
        UsageError: it is not trained, or its checkpoint cannot be used with the model.
    """
    run.require_trained()
    inputs = load_inputs(config, progress, weights="all")
    bottleneck = Bottleneck.from_pretrained(run.path, table=inputs.table).to(inputs.device)
    result = diagnose(_case(bottleneck, inputs, run.metrics(), limit, progress), str(run.path))
    run.write_diagnosis(result)
    return result


def diagnose_untrained(config: RunConfig, limit: int, progress: Progress) -> dict[str, Any]:
    """Diagnose what `config` names as it is before training: fitted and warm-started only.

    Raises:
        UsageError: the configuration, model or data cannot be used.
    """
    registry = load_plugins()
    resolved = resolve(config, registry)
    inputs = load_inputs(fully_resolved(config, resolved), progress, weights="all")
    bottleneck = Bottleneck.build(resolved, config.magnitude, inputs.table.shape[1], config.seed)
    case = _case(bottleneck.to(inputs.device), inputs, [], limit, progress)
    with progress.task(f"Fitting {bottleneck.compressor.name}"):
        bottleneck.fit(case.fitted, inputs.table)
    bottleneck.requires_grad_(False).eval()
    return diagnose(case, "RUN")


def _case(
    bottleneck: Bottleneck, inputs: Inputs, metrics: list[dict[str, Any]], limit: int, progress: Progress
) -> Case:
    questions = spread(inputs.data.test, limit)
    model = load_model(inputs, progress)
    return Case(bottleneck, inputs, model, questions, inputs.prompts(questions), metrics, progress)

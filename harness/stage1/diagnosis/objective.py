"""What training asked for: how its terms shared the objective, and what they cannot see."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from stage1.bottleneck.batches import Batch
from stage1.bottleneck.statistics import occurrence_weights
from stage1.data.datasets import passage_hash
from stage1.data.records import Question
from stage1.diagnosis.case import Case
from stage1.llm.states import FrozenLLM
from stage1.plugins import Resolved, load_plugins, resolve
from stage1.plugins.tensors import Code
from stage1.training.batches import PromptBatches
from stage1.training.inputs import Presenter, RoundTrip
from stage1.training.objective import Objective

PROMPTS = 16
"""Training prompts that `magnitude_blind` is measured on."""

SCALES = (0.5, 2.0)
UNCHANGED = 1e-3
"""Relative change of the objective below which it does not see the scale."""


def measure(case: Case) -> dict[str, Any]:
    """The terms' part in the objective and in its gradient, and what evaluation would find missing in it.

    What is read from the metrics is None without training. `magnitude_blind` and `blind_terms` are also
    None where there are no training questions, or where the objective compares position with position
    and the compressor changes the length.
    """
    resolved = resolve(case.session.config, load_plugins())
    last = _last_phase(case, resolved)
    steps = [entry for entry in case.metrics if "terms" in entry]
    terms = _terms(steps)
    every = {**resolved.losses, **last.losses}
    forced = [name for name, term in every.items() if steps and term.cls.teacher_forced]
    data = case.session.data
    return {
        "terms": terms,
        "on_selection": _on_selection(case.metrics),
        "kept_step": _kept_step(case.metrics),
        "dominating": _dominating(terms),
        "gradients": _gradients(steps),
        **_course(case.metrics, "recon"),
        "recon_best": min(_on_checks(case.metrics, "recon"), default=None),
        **_course(case.metrics, "score"),
        "lr": case.session.config.train.lr,
        "teacher_forced": forced,
        "teacher_forced_accuracy": _accuracy(case) if forced else None,
        **blindness(case, last),
        "selection_on_test": _shared(data.selection, data.test),
        "training_on_test": _shared(data.train, data.test),
    }


def _last_phase(case: Case, resolved: Resolved) -> Resolved:
    """`resolved` with the losses of the phase that the metrics tell of."""
    logged = {name for entry in case.metrics for name in entry.get("terms", ())}
    if logged and logged == resolved.then_losses.keys() != resolved.losses.keys():
        return resolved._replace(losses=resolved.then_losses)
    return resolved


# -- from the metrics --------------------------------------------------------------------------------------


def _terms(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Each term's share of the objective (0 to 1) and value, over the logged optimiser steps."""
    if not steps:
        return None
    return {
        name: {
            "mean_share": fmean([entry["terms"][name]["share"] for entry in steps]),
            "last_share": steps[-1]["terms"][name]["share"],
            "first_value": steps[0]["terms"][name]["value"],
            "last_value": steps[-1]["terms"][name]["value"],
            "weight": steps[-1]["terms"][name]["weight"],
        }
        for name in steps[0]["terms"]
    }


def _on_selection(metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]] | None:
    """Each term's value before training and at its end; None where they were not measured there."""
    found = _on_checks(metrics, "terms")
    if not found:
        return None
    return {name: {"first": found[0][name], "last": found[-1][name]} for name in found[0]}


def _kept_step(metrics: Sequence[Mapping[str, Any]]) -> int | None:
    """The step of the checkpoint that was kept: 0, where training found nothing better than its start."""
    if not metrics:
        return None
    return int(min(metrics, key=lambda entry: entry["selection"]["score"])["step"])


def _dominating(terms: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The term with the largest mean share, where there is more than one."""
    if terms is None or len(terms) < 2:
        return None
    name = max(terms, key=lambda term: terms[term]["mean_share"])
    return {"term": name, "share": terms[name]["mean_share"]}


def _gradients(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Means of the gradients' norms and of their cosines, −1 (against each other) to 1."""
    compared = [entry["gradients"] for entry in steps if "gradients" in entry]
    if not compared:
        return None
    return {
        kind: {name: fmean([one[kind][name] for one in compared]) for name in compared[0][kind]}
        for kind in ("cosine", "norm")
    }


def _course(metrics: Sequence[Mapping[str, Any]], name: str) -> dict[str, float | None]:
    """`recon` (0 perfect, 1 always the mean) or `score`, at the start and where the optimiser ended.

    The last layer's closed form after it is no step of the optimiser; it counts for the best.
    """
    found = _on_checks(metrics, name)
    first, last = (found[0], found[-1]) if found else (None, None)
    if len(found) > 1 and metrics[-1].get("solved"):
        last = found[-2]
    return {f"{name}_first": first, f"{name}_last": last}


def _on_checks(metrics: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """What was measured on the selection split under this name, check by check."""
    return [entry["selection"][name] for entry in metrics if name in entry["selection"]]


# -- with the answer, and without --------------------------------------------------------------------------


@torch.no_grad()
def _accuracy(case: Case) -> dict[str, float]:
    """Shares of the gold answers' tokens, the closing newline included, that are the most probable ones.

    `given_the_answer`: of all tokens, each after the true ones before it, as a teacher-forced loss sees
    them. `alone`: of the first tokens, before which there is the reconstructed prompt only.
    """
    llm = FrozenLLM(case.session.model.llm)
    embed = case.view(case.bottleneck.reconstruct)
    hits, first = [], []
    for batch in case.batches(case.session.answer_ids(case.questions, case.prompts)):
        gold: Any = batch.answers  # never None, as they were given
        states = llm(embed(batch.ids, batch.cross, batch.attention), gold).answering
        hits.append((llm.head(states[gold.mask]).argmax(-1) == gold.ids[gold.mask]).float())
        first.append((llm.head(states[:, 0]).argmax(-1) == gold.ids[:, 0]).float())
    return {
        "given_the_answer": float(torch.cat(hits).mean()),
        "alone": float(torch.cat(first).mean()),
    }


# -- the length of the reconstructed vectors --------------------------------------------------------


@torch.no_grad()
def blindness(case: Case, resolved: Resolved) -> dict[str, Any]:
    """Whether the objective notices reconstructed vectors half or twice as long; terms that do not."""
    objective = Objective(resolved).to(case.session.device)
    moved = case.bottleneck.compressor.changes_length
    bound = any(loss.requires_same_length for loss in objective.losses.values())
    if not case.session.data.train or (moved and bound):
        return {"magnitude_blind": None, "blind_terms": None}
    batch, cross = training_batch(case, objective), RoundTrip(case.bottleneck)
    llm = None
    if objective.needs_llm:
        llm = FrozenLLM(case.session.model.llm, layers=objective.layers, last=objective.reads_last_states)
    present = Presenter(case.fitted.variance, case.session.special, moved, llm)

    def values(scale: float) -> dict[str, Tensor]:
        """The terms, if every reconstructed vector were `scale` times as long."""

        def scaled(embeds: Tensor, mask: Tensor) -> tuple[Code, Tensor]:
            code, reconstructed = cross(embeds, mask)
            return code, scale * reconstructed

        found: dict[str, Tensor] = objective(present(batch, scaled))
        return found

    plain, scaled = values(1.0), [values(scale) for scale in SCALES]
    weights = objective.scales({name: float(value) for name, value in plain.items()})
    whole = objective.total(plain, weights)
    return {
        "magnitude_blind": all(_unchanged(whole, objective.total(other, weights)) for other in scaled),
        "blind_terms": [
            name for name in plain if all(_unchanged(plain[name], other[name]) for other in scaled)
        ],
    }


def _unchanged(before: Tensor, after: Tensor) -> bool:
    return bool((after - before).abs() <= UNCHANGED * before.abs())


def training_batch(case: Case, objective: Objective) -> Batch:
    """The first prompts of the training split, weighted as training weighs them."""
    session = case.session
    questions = session.data.train[:PROMPTS]
    prompts = session.prompts(questions)
    return PromptBatches(
        prompts,
        session.table,
        occurrence_weights(case.fitted, session.config.train.uniform, session.table),
        len(questions),
        session.config.seed,
        answers=session.answer_ids(questions, prompts) if objective.teacher_forced else None,
    ).batch(0)


def _shared(one: Sequence[Question], other: Sequence[Question]) -> int:
    """Passages in both."""
    return len({*map(passage_hash, one)} & {*map(passage_hash, other)})

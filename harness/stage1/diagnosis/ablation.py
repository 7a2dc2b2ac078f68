"""Where F1 falls: the same questions after each stage of the bottleneck, and with one thing changed.

Stages follow the prompt: `raw` → `inverse` (compressor and its own inverse) → `adapter` (with its own
magnitudes) → `bottleneck` (with those configured). Variants change one thing of the whole: the norms to the
originals', what crosses, or the training (`closed_form`, the least-squares decoder of these very codes;
`refit`, the same from a compressor fitted anew on plenty of this table's tokens; only where few or others
were used).
"""

from collections.abc import Iterator
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.splice import Reconstruct, rescaled, rms
from stage1.bottleneck.statistics import least_squares
from stage1.data.datasets import load_qa
from stage1.data.prompts import Prompt
from stage1.diagnosis.case import Case
from stage1.diagnosis.compressor import FOREIGN, mean_distance
from stage1.evaluation.conditions import lookup, through_inverse
from stage1.evaluation.generation import Embed
from stage1.evaluation.statistics import ClusterBootstrap
from stage1.plugins import load_plugins, resolve
from stage1.plugins.interfaces import Encode
from stage1.plugins.tensors import TokenStats
from stage1.training.sensitivity import fitting_stats

PLENTY = 10_000
"""Training prompts behind `refit`."""


class _View(NamedTuple):
    name: str
    embed: Embed
    prompts: list[Prompt] | None = None


def measure(case: Case) -> dict[str, Any]:
    """F1, prompt perplexity and agreement with the text path, by stage and by variant.

    `gain_ci95` is the paired interval of how much more F1 that is than the bottleneck's. Perplexity and
    agreement are None where the prompts are others or positions do not match.
    """
    bootstrap = ClusterBootstrap([q.context for q in case.questions], case.session.config.eval.resamples, 0)
    aligned = not case.bottleneck.compressor.changes_length
    raw = case.next_tokens("raw", case.raw) if aligned else None

    def entry(view: _View) -> dict[str, Any]:
        asked = case.ask(view.name, view.embed, view.prompts)
        found = {
            "name": view.name,
            "f1": asked.mean,
            "f1_ci95": bootstrap.interval(asked.f1),
            "gain_ci95": bootstrap.interval(asked.f1 - case.ours.f1),
        }
        if raw is None or view.prompts is not None:
            return {**found, "perplexity": None, "agreement": None}
        seen = case.next_tokens(view.name, view.embed)
        agreement = float((seen.guesses == raw.guesses).float().mean())
        return {**found, "perplexity": seen.perplexity, "agreement": agreement}

    return {
        "stages": [entry(view) for view in _stages(case)],
        "variants": [entry(view) for view in _variants(case)],
    }


def _stages(case: Case) -> Iterator[_View]:
    bottleneck = case.bottleneck
    yield _View("raw", case.raw)
    if (inverse := through_inverse(bottleneck, case.session, case.stats, case.prompts)) is not None:
        yield _View("inverse", inverse)
    if bottleneck.magnitude != "free":
        free = copy(bottleneck)
        free.magnitude = "free"
        yield _View("adapter", case.view(free.reconstruct))
    yield _View("bottleneck", case.view(bottleneck.reconstruct))


def _variants(case: Case) -> Iterator[_View]:
    if not case.bottleneck.compressor.changes_length:
        yield _View("true_norms", case.view(_with_true_norms(case.bottleneck)))
    for name, change in (("context_only", {"scope": "context"}), ("raw_anchor", {"raw_anchor": True})):
        if all(getattr(case.session.config, key) != value for key, value in change.items()):
            config = case.session.config.model_copy(update=change)
            prompts = case.session.under(config).prompts(case.questions)
            yield _View(name, case.view(case.bottleneck.reconstruct, prompts), prompts)
    if case.bottleneck.compressor.tokenwise and case.session.data.train:
        yield _View("closed_form", _closed_form(case, case.bottleneck.encode_rows, case.fitted))
        if _worth_refitting(case):
            yield _View("refit", _refit(case))


def _with_true_norms(bottleneck: Bottleneck) -> Reconstruct:
    """What nobody could send for free: the originals' norms."""

    def reconstruct(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        reconstructed, kept = bottleneck.reconstruct(embeds, mask)
        return rescaled(reconstructed, rms(embeds)), kept

    return reconstruct


def _closed_form(case: Case, encode: Encode, fitted: TokenStats) -> Embed:
    """Every crossing token as the least-squares decoder of its code reconstructs it."""
    with torch.no_grad():
        weight, bias = least_squares(encode(fitted.embeds), fitted.embeds, fitted.shares)
        rows = encode(case.stats.embeds).double() @ weight + bias
    return lookup(case.session, case.stats, rows.float())


def _worth_refitting(case: Case) -> bool:
    few = len(case.session.data.train) < PLENTY / 2
    return few or (mean_distance(case.bottleneck, case.fitted) or 0.0) > FOREIGN


def _refit(case: Case) -> Embed:
    """The compressor's closed form again, from this table and plenty of prompts."""
    config = case.session.config
    data = config.data.model_copy(update={"train": max(PLENTY, config.data.train)})
    stats = fitting_stats(case.session, case.session.prompts(load_qa(data).train))
    resolved = resolve(config, load_plugins())
    fresh = Bottleneck.build(resolved, config.magnitude, case.session.table.shape[1], config.seed)
    fresh.to(case.session.device).fit(stats, case.session.table)
    return _closed_form(case, fresh.encode_rows, stats)

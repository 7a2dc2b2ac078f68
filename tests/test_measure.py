"""Bits, reconstruction errors and intervals, each against a slow obvious computation."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from conftest import build_prompts, fitted
from pairs import pairs
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import count_tokens
from stage1.data.prompts import Prompt
from stage1.evaluation.rate import rate
from stage1.evaluation.reconstruction import nearest, positions, reconstruction
from stage1.evaluation.statistics import ClusterBootstrap
from stage1.plugins.tensors import TokenStats
from stage1.session import Session


@pytest.fixture(scope="module")
def prompts(session: Session) -> list[Prompt]:
    return session.prompts(session.data.test[:30])


# -- rate -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("magnitude", "scale_bits"), [("free", 0), ("vocab", 0), ("sent", 16)])
def test_bits_are_those_of_vectors_scales_and_raw_tokens(
    magnitude: str, scale_bits: int, session: Session, prompts: list[Prompt]
) -> None:
    bottleneck = fitted(session, "compressor.dim=20", "adapter=linear", f"magnitude={magnitude}")
    table = session.table
    measured = rate(bottleneck, prompts, count_tokens(prompts, table), table)
    crossing = sum(sum(p.cross) for p in prompts)
    tokens = sum(len(p.ids) for p in prompts)
    assert tokens - crossing == len(prompts)  # BOS
    bits = crossing * (20 * 16 + scale_bits) + len(prompts) * math.log2(len(table))
    assert measured["bits_per_token"] == pytest.approx(bits / tokens, rel=1e-12)
    assert measured["vs_bf16"] == pytest.approx(tokens * 256 * 16 / bits)
    assert measured["vs_token_ids"] == pytest.approx(tokens * math.log2(len(table)) / bits)
    assert measured["vs_text"] == pytest.approx(8 * sum(len(p.text.encode()) for p in prompts) / bits)


def test_bits_where_only_the_context_crosses(session: Session) -> None:
    prompts = build_prompts(session.data.test[:10], session.tokenizer, scope="context", max_tokens=500)
    bottleneck = fitted(session, "compressor.dim=32", "adapter=linear")
    measured = rate(bottleneck, prompts, count_tokens(prompts, session.table), session.table)
    crossing, tokens = sum(sum(p.cross) for p in prompts), sum(len(p.ids) for p in prompts)
    bits = crossing * 512 + (tokens - crossing) * math.log2(len(session.table))
    assert 0 < crossing < tokens - 10
    assert measured["bits_per_token"] == pytest.approx(bits / tokens)


def test_bits_of_a_code_with_fewer_vectors(session: Session, prompts: list[Prompt]) -> None:
    table = session.table
    measured = rate(pairs(256), prompts, count_tokens(prompts, table), table)
    vectors = sum(math.ceil(sum(p.cross) / 2) for p in prompts)
    tokens = sum(len(p.ids) for p in prompts)
    bits = vectors * (256 * 16 + 3) + len(prompts) * math.log2(len(table))
    assert measured["bits_per_token"] == pytest.approx(bits / tokens)
    assert positions(pairs(256), prompts, count_tokens(prompts, table), table) is None
    assert reconstruction(None, 1.0, table, torch.zeros(0)) is None


# -- reconstruction ---------------------------------------------------------------------------------------


def slow_reconstruction(
    bottleneck: Bottleneck, prompts: list[Prompt], table: Tensor, seen: Tensor
) -> dict[str, float]:
    """Position by position, prompt by prompt."""
    original, reconstructed, ids = [], [], []
    for prompt in prompts:
        embeds = table[torch.tensor(prompt.ids)].float()[None]
        cross = torch.tensor([prompt.cross])
        original.append(embeds[cross].double())
        reconstructed.append(bottleneck(embeds, cross)[cross].double())
        ids.append(torch.tensor(prompt.ids)[cross[0]])
    e, r, t = torch.cat(original), torch.cat(reconstructed), torch.cat(ids)
    mse = (e - r).square().mean()
    right, known = (torch.cdist(r, table.double()).argmin(1) == t).double(), seen[t]
    return {
        "recon": float(mse / e.var(0, correction=0).mean()),
        "mse": float(mse),
        "cosine": float(torch.cosine_similarity(e, r).mean()),
        "relative_error": float((e - r).norm() / e.norm()),
        "norm_ratio": float((r.norm(dim=1) / e.norm(dim=1)).mean()),
        "token_recovery": float(right.mean()),
        "token_recovery_seen": float(right[known].mean()),
        "token_recovery_unseen": float(right[~known].mean()),
        "unseen": float((~known).double().mean()),
    }


@pytest.mark.parametrize("tokenwise", [True, False])
@pytest.mark.parametrize("dim", [2, 8])
def test_reconstruction_is_that_of_every_position(
    tokenwise: bool, dim: int, session: Session, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    bottleneck = fitted(session, f"compressor.dim={dim}", "adapter=linear")
    monkeypatch.setattr(type(bottleneck.compressor), "tokenwise", tokenwise)
    assert bottleneck.tokenwise == tokenwise
    table = session.table
    stats = count_tokens(prompts, table)
    assert bottleneck.seen.sum() == len(count_tokens(session.prompts(session.data.train), table).ids)
    seen = bottleneck.seen.clone()
    seen[stats.ids[::3]] = False  # enough that both shares say something
    expected = slow_reconstruction(bottleneck, prompts, table, seen)
    assert 0 < expected["token_recovery"] < 1
    crossing = positions(bottleneck, prompts, stats, table)
    assert crossing is not None
    assert crossing.counts.sum() == sum(sum(prompt.cross) for prompt in prompts)
    assert reconstruction(crossing, stats.variance, table, seen) == pytest.approx(expected, rel=1e-4)


def test_nearest_token_in_pieces(stats: TokenStats, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = (stats.embeds + 0.08 * torch.randn(200, 24, generator=torch.Generator().manual_seed(1))).float()
    table = torch.cat([stats.embeds, stats.embeds[:3]])  # rows that occur twice are as good as their twin
    distances = torch.cdist(noisy.double(), stats.embeds.double())
    cosines = normalize(noisy.double()) @ normalize(stats.embeds.double()).T
    assert 0.1 < (distances.argmin(1) == stats.ids).double().mean() < 0.9
    for pieces in (2**24, 200 * 7, 1):
        monkeypatch.setattr("stage1.evaluation.reconstruction.SCORES_AT_ONCE", pieces)
        found = nearest(noisy, stats.ids, table)
        assert torch.equal(found.euclidean, distances.argmin(1))
        assert torch.equal(found.cosine, cosines.argmax(1))
    twins = torch.tensor([200, 201, 202])
    assert torch.equal(nearest(table[twins], twins, table).euclidean, twins)
    nothing = nearest(torch.zeros(3, 24), twins, table)
    assert not torch.equal(nothing.cosine, twins)  # a vector of zeros has no direction


# -- intervals --------------------------------------------------------------------------------------------


def written_out(
    bootstrap: ClusterBootstrap, clusters: list[str], statistic: Callable[[Any], Any]
) -> list[float]:
    """The interval of a `statistic` of the numbers of the questions drawn, resample by resample."""
    names, found = list(dict.fromkeys(clusters)), []
    for draws in bootstrap.weights:
        times = [int(draws[names.index(cluster)]) for cluster in clusters]
        found.append(statistic(np.repeat(range(len(clusters)), times)))
    return [float(np.quantile(found, bound)) for bound in (0.025, 0.975)]


def test_bootstrap_equals_the_written_out_one() -> None:
    rng = np.random.default_rng(3)
    clusters = [f"passage {number}" for number in rng.integers(0, 12, size=70)]
    values = rng.random(70) * 100
    bootstrap = ClusterBootstrap(clusters, resamples=150, seed=5)
    assert bootstrap.weights.shape == (150, len(set(clusters)))
    assert (bootstrap.weights.sum(1) == len(set(clusters))).all()  # as many passages as there are
    interval = bootstrap.interval(values)
    assert interval == pytest.approx(written_out(bootstrap, clusters, lambda drawn: values[drawn].mean()))
    assert interval == ClusterBootstrap(clusters, resamples=150, seed=5).interval(values)
    assert interval != ClusterBootstrap(clusters, resamples=150, seed=6).interval(values)


def test_the_ratio_of_two_means_equals_the_written_out_one() -> None:
    rng = np.random.default_rng(4)
    clusters = [f"passage {number}" for number in rng.integers(0, 12, size=70)]
    ours, text = rng.random(70) * 60, rng.random(70) * 100
    bootstrap = ClusterBootstrap(clusters, resamples=150, seed=5)
    expected = written_out(bootstrap, clusters, lambda drawn: ours[drawn].mean() / text[drawn].mean())
    assert bootstrap.ratio_interval(ours, text) == pytest.approx(expected)
    assert bootstrap.ratio_interval(text, text) == [1, 1]  # paired: the same resample above and below
    assert bootstrap.ratio_interval(0 * text, text) == [0, 0]


def test_a_ratio_to_nothing_has_no_interval() -> None:
    few = np.zeros(20)
    few[0] = 50  # absent from about a third of the resamples
    bootstrap = ClusterBootstrap(range(20), 400, 0)
    assert bootstrap.ratio_interval(few, few) is None
    assert bootstrap.ratio_interval(few, few + 1) is not None
    assert bootstrap.ratio_interval(few, np.zeros(20)) is None


def test_bootstrap_knows_that_questions_about_a_passage_are_not_independent() -> None:
    values = np.repeat([0.0, 100.0] * 20, 10)  # 40 passages, all 10 questions of each right or wrong
    clustered = ClusterBootstrap(np.repeat(range(40), 10).tolist(), 2000, 0).interval(values)
    naive = ClusterBootstrap(range(400), 2000, 0).interval(values)
    width = (clustered[1] - clustered[0]) / (naive[1] - naive[0])
    assert width == pytest.approx(math.sqrt(10), rel=0.15)
    half = 1.96 * 50 / math.sqrt(40)  # normal approximation
    assert clustered == pytest.approx([50 - half, 50 + half], abs=1.5)

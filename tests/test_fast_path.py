"""The histogram over the vocabulary against the slow, obvious loop over prompts: the same numbers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import ROOT, built, small_config
from stage1.bottleneck.batches import collate
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import count_tokens, least_squares, occurrence_weights, training_rows
from stage1.data.prompts import Prompt
from stage1.plugins import load_plugins, resolve
from stage1.plugins.tensors import LossInputs, TokenStats
from stage1.runs.run import Run
from stage1.session import Session
from stage1.training.batches import PromptBatches, TokenBatches
from stage1.training.objective import Objective


def crossing_rows(prompts: list[Prompt], table: torch.Tensor) -> torch.Tensor:
    """The reference: every crossing embedding of every prompt, one after another, in float64."""
    rows = [table[i].double() for p in prompts for i, crosses in zip(p.ids, p.cross, strict=True) if crosses]
    return torch.stack(rows)


@pytest.fixture(scope="module")
def prompts(session: Session) -> list[Prompt]:
    return session.prompts(session.data.train)[:60]


def test_moments_equal_those_over_all_positions(session: Session, prompts: list[Prompt]) -> None:
    stats = count_tokens(prompts, session.table)
    rows = crossing_rows(prompts, session.table)
    assert int(stats.weights.sum()) == len(rows)
    assert len(stats.ids) < len(rows) / 10  # otherwise there is nothing fast about the fast path
    torch.testing.assert_close(stats.mean, rows.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(stats.covariance(), torch.cov(rows.T, correction=0), rtol=0, atol=1e-12)
    assert stats.variance == pytest.approx(float(rows.var(0, correction=0).mean()), rel=1e-12)


def test_pca_equals_a_decomposition_of_all_prompts(session: Session, prompts: list[Prompt]) -> None:
    stats = count_tokens(prompts, session.table)
    bottleneck = built(stats, "compressor.dim=16", fit=False)
    bottleneck.double().fit(stats, session.table)
    rows = crossing_rows(prompts, session.table)
    _, singular, directions = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    components = bottleneck.compressor.components.double()
    cosines = (components * directions[:16]).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(16, dtype=torch.float64), rtol=0, atol=1e-5)
    explained = singular.square() / singular.square().sum()
    ours = bottleneck.compressor.explained_variance.double()
    torch.testing.assert_close(ours, explained[:16], rtol=0, atol=1e-5)


def test_least_squares_equals_lstsq_over_all_positions(session: Session, prompts: list[Prompt]) -> None:
    stats = count_tokens(prompts, session.table)
    projection = torch.randn(stats.embeds.shape[1], 12, generator=torch.Generator().manual_seed(0))
    weight, bias = least_squares(stats.embeds @ projection, stats.embeds, stats.shares)
    rows = crossing_rows(prompts, session.table)
    codes = torch.cat([rows @ projection.double(), torch.ones(len(rows), 1, dtype=torch.float64)], 1)
    reference = torch.linalg.lstsq(codes, rows).solution
    torch.testing.assert_close(torch.cat([weight, bias[None]]), reference, rtol=1e-4, atol=1e-6)


def gradient(bottleneck: Bottleneck, objective: Objective, inputs: LossInputs) -> torch.Tensor:
    bottleneck.zero_grad()
    total: Any = objective.total(objective(inputs), objective.weights(0))
    total.backward()
    return torch.cat([p.grad.flatten() for p in bottleneck.parameters() if p.grad is not None])


@pytest.mark.parametrize("uniform", [0.0, 0.5])
def test_expected_gradient_equals_that_of_all_prompts(
    session: Session, prompts: list[Prompt], uniform: float
) -> None:
    config = small_config("losses.recon=1", "losses.cosine=0.3")
    resolved = resolve(config, load_plugins())
    objective = Objective(resolved)
    stats = count_tokens(prompts, session.table)
    bottleneck = built(stats, "compressor.dim=8", "adapter=mlp", fit=False)
    bottleneck.fit(stats, session.table)
    rows = training_rows(stats, uniform, session.table, "seen")

    batch = TokenBatches(rows, size=len(stats.ids), seed=0).batch(0)
    reconstructed = bottleneck(batch.embeds, batch.cross)
    fast = gradient(
        bottleneck,
        objective,
        LossInputs(batch.embeds, reconstructed, batch.weights, batch.ids, stats.variance),
    )

    slow, total = torch.zeros_like(fast), 0.0
    per_token = occurrence_weights(stats, uniform, session.table)
    for prompt in prompts:  # one at a time: the obvious loop
        batch = collate([prompt], session.table, per_token)
        reconstructed = bottleneck(batch.embeds, batch.cross)
        given = LossInputs(batch.embeds, reconstructed, batch.weights, batch.ids, stats.variance)
        slow += float(batch.weights.sum()) * gradient(bottleneck, objective, given)
        total += float(batch.weights.sum())
    torch.testing.assert_close(fast, slow / total, rtol=1e-3, atol=1e-6)


def test_drawn_batches_have_the_shares_as_expectation() -> None:
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    stats = TokenStats(torch.tensor([3, 5, 8, 9]), shares * 100, torch.eye(4))
    source = TokenBatches(stats, size=3, seed=1, rank=0, processes=2)
    drawn = torch.cat([source.batch(step).ids[0] for step in range(4000)])
    assert len(drawn) == 4000 * 2  # of three, the other process draws the rest
    frequencies = torch.stack([(drawn == i).double().mean() for i in stats.ids])
    torch.testing.assert_close(frequencies, shares, rtol=0, atol=0.02)


def test_processes_share_the_tokens_where_all_fit_into_a_batch() -> None:
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    stats = TokenStats(torch.tensor([3, 5, 8, 9]), shares * 100, torch.eye(4))
    parts = [TokenBatches(stats, 4, 1, rank=rank, processes=3).batch(7) for rank in range(3)]
    assert sorted(i for part in parts for i in part.ids[0].tolist()) == stats.ids.tolist()
    assert float(sum(part.weights.sum() for part in parts)) == pytest.approx(1)


def test_processes_share_a_batch_without_overlap(session: Session, prompts: list[Prompt]) -> None:
    stats = count_tokens(prompts, session.table)

    def make(rank: int = 0, processes: int = 1) -> PromptBatches:
        weight = occurrence_weights(stats, 0.5, session.table)
        return PromptBatches(prompts, session.table, weight, 4, 3, rank=rank, processes=processes)

    whole = [make().batch(step) for step in range(20)]  # 80 prompts: over the end of an epoch of 60
    parts = [[make(rank=r, processes=2).batch(step) for r in (0, 1)] for step in range(20)]
    for one, (a, b) in zip(whole, parts, strict=True):
        joint = sorted(
            str(row[m].tolist()) for part in (a, b) for row, m in zip(part.ids, part.attention, strict=True)
        )
        assert joint == sorted(str(row[m].tolist()) for row, m in zip(one.ids, one.attention, strict=True))
    epoch = [
        str(row[m].tolist())
        for batch in whole[:15]
        for row, m in zip(batch.ids, batch.attention, strict=True)
    ]
    assert sorted(epoch) == sorted(str(p.ids) for p in prompts)  # every prompt once per epoch


def test_batches_depend_on_seed_and_step_alone(session: Session, prompts: list[Prompt]) -> None:
    stats = count_tokens(prompts, session.table)
    first = TokenBatches(stats, 64, seed=5)
    second = TokenBatches(stats, 64, seed=5)
    second.batch(0)
    assert torch.equal(first.batch(3).ids, second.batch(3).ids)
    assert not torch.equal(first.batch(3).ids, first.batch(4).ids)
    assert not np.array_equal(first.batch(3).ids, TokenBatches(stats, 64, seed=6).batch(3).ids)


@pytest.mark.slow
def test_the_benchmark_trains_on_the_model_that_it_writes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, str(ROOT / "benchmarks" / "large_table.py"), "--shape", "2000", "64", "1500"]
    command += ["--folder", str(tmp_path / "model"), "--output", str(run)]
    for setting in ("compressor.dim=8", "train.steps=5", "train.until=steps", "device=cpu"):
        command += ["--set", setting]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    record = json.loads(done.stdout)
    assert (record["table"], record["device"]) == ([2000, 64], "cpu")
    assert record["tokens"]["distinct"] > 1400
    assert record["training"] == Run.open(run).read_manifest()["training"]
    assert (record["training"]["steps"], record["training"]["stopped"]) == (5, "steps")
    assert record["training"]["best_error"] < record["training"]["first_error"]
    assert 0 < record["training_seconds"] < record["seconds"]

"""The fast path at the size of Llama-3.1-8B: an embedding table of 128,256 × 4,096, 25,000 tokens in use.

The table is synthetic (there are no such weights here): a decaying spectrum, bfloat16, Zipf counts. A
compressor to 512 dimensions, exact PCA for one, is fitted, then the closed-form decoder, then a residual
adapter is trained with it, on the tokens in use or on every row; times and peak memory of this process are
printed.

    python benchmarks/large_table.py [--steps 30] [--compressor autoencoder] [--vocabulary all]
"""

import argparse
import json
import resource
import time
from typing import Any

import torch

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import training_rows
from stage1.config import merge, validate
from stage1.plugins import load_plugins, resolve
from stage1.plugins.tensors import LossInputs, TokenStats
from stage1.training.batches import TokenBatches
from stage1.training.objective import Objective
from stage1.training.schedule import learning_rate

VOCABULARY, WIDTH, USED, DIM = 128_256, 4096, 25_000, 512


def synthetic_table() -> torch.Tensor:
    """[V, D] bfloat16, RMS near 0.01, with a spectrum that decays as word embeddings' do."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
    mixing *= torch.arange(1, WIDTH + 1)[:, None] ** -0.4
    table = torch.empty(VOCABULARY, WIDTH, dtype=torch.bfloat16)
    for rows in torch.split(table, 8192):
        rows.copy_(0.05 * torch.randn(len(rows), WIDTH, generator=generator) @ mixing)
    return table


def main() -> None:
    """Run it and print the times as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--compressor", default="pca")
    parser.add_argument("--vocabulary", choices=["seen", "all"], default="seen", help="rows trained on")
    args = parser.parse_args()
    settings = [
        f"compressor={args.compressor}",
        f"compressor.dim={DIM}",
        "adapter.expansion=1",
        "train.batch_tokens=2048",
        "train.lr=3e-4",
    ]
    config = validate(merge({}, {}, [*settings, f"train.steps={args.steps}", "train.until=steps"]))
    table = synthetic_table()
    ids = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(1))[:USED].sort().values
    counts = (1e6 / torch.arange(1, USED + 1).double()).ceil()
    times: dict[str, float] = {}

    begun = time.perf_counter()
    stats = TokenStats(ids, counts, table[ids].float())
    resolved = resolve(config, load_plugins())
    bottleneck = Bottleneck.build(resolved, "free", WIDTH, config.seed)
    times["build"] = time.perf_counter() - begun

    begun = time.perf_counter()
    bottleneck.compressor.fit(stats)
    times["fit"] = time.perf_counter() - begun
    begun = time.perf_counter()
    with torch.no_grad():
        bottleneck.adapter.warm_start(bottleneck.encode_rows, stats)
    times["closed_form_decoder"] = time.perf_counter() - begun

    objective = Objective(resolved)
    optimizer = torch.optim.AdamW(bottleneck.parameters(), lr=config.train.lr)
    rows = training_rows(stats, config.train.uniform, table, args.vocabulary)
    batches = TokenBatches(rows, config.train.batch_tokens, config.seed)
    losses: list[float] = []
    begun = time.perf_counter()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.train)
        batch = batches.batch(step)
        reconstructed = bottleneck(batch.embeds, batch.cross)
        inputs = LossInputs(batch.embeds, reconstructed, batch.weights, batch.ids, stats.variance)
        total: Any = objective.total(objective(inputs), objective.weights(0))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    times["training"] = time.perf_counter() - begun
    begun = time.perf_counter()
    with torch.no_grad():
        bottleneck.adapter.solve_last_layer(bottleneck.encode_rows, rows)
    times["closed_form_last_layer"] = time.perf_counter() - begun
    with torch.no_grad():
        batch = batches.batch(0)
        reconstructed = bottleneck(batch.embeds, batch.cross)
        refitted = objective.total(
            objective(LossInputs(batch.embeds, reconstructed, batch.weights, batch.ids, stats.variance)),
            objective.weights(0),
        )
    print(
        json.dumps(
            {
                "table": [VOCABULARY, WIDTH],
                "compressor": args.compressor,
                "rows_trained_on": len(rows.ids),
                "tokens_in_use": USED,
                "code_dim": DIM,
                "trained_parameters": sum(p.numel() for p in bottleneck.parameters()),
                "seconds": {name: round(value, 2) for name, value in times.items()},
                "seconds_per_step": times["training"] / args.steps,
                "loss_first_last_refitted": [losses[0], losses[-1], float(refitted)],
                "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
                "threads": torch.get_num_threads(),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()

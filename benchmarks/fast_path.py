"""Distinct tokens against whole prompts: fitting PCA and training the adapter on 10,000 prompts × 3 epochs.

Both sides run in this process on the same prompts of tiny-squad, one after the other, and are measured by
the same error on the selection split. The prompt-by-prompt side is what a careful script does: collect
the embeddings of all prompts for PCA, then train on shuffled batches of padded prompts. The fast side
takes a few gradient steps on the weighted distinct tokens and solves the last layer in closed form.

    python benchmarks/fast_path.py [--prompts 10000] [--epochs 3]
"""

import argparse
import json
import time
from typing import Any

import torch

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import count_tokens, occurrence_weights
from stage1.config import RunConfig, merge, validate
from stage1.data.prompts import Prompt
from stage1.plugins import load_plugins, resolve
from stage1.plugins.tensors import LossInputs, TokenStats
from stage1.progress import Progress
from stage1.session import Session
from stage1.training.batches import Batches, PromptBatches, TokenBatches
from stage1.training.objective import Objective
from stage1.training.schedule import learning_rate

BATCH_PROMPTS = 16
PLAIN = ("train.uniform=0", "train.until=steps")


def fit_pca_on_prompts(bottleneck: Bottleneck, prompts: list[Prompt], table: torch.Tensor) -> None:
    """Every crossing embedding of every prompt, stacked, and one decomposition of their covariance."""
    rows = torch.cat([table[torch.tensor(p.ids)[torch.tensor(p.cross)]].float() for p in prompts])
    ones = torch.ones(len(rows), dtype=torch.float64)
    bottleneck.fit(TokenStats(torch.arange(len(rows)), ones, rows), table)


def train(bottleneck: Bottleneck, batches: Batches, config: RunConfig, variance: float) -> None:
    """The optimiser's loop, the same for both sides."""
    objective = Objective(resolve(config, load_plugins()))
    optimizer = torch.optim.AdamW(bottleneck.parameters(), lr=config.train.lr, weight_decay=0.0)
    for step in range(config.train.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.train)
        batch = batches.batch(step)
        reconstructed = bottleneck(batch.embeds, batch.cross)
        total: Any = objective.total(
            objective(LossInputs(batch.embeds, reconstructed, batch.weights, batch.ids, variance)),
            objective.weights(0),
        )
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(bottleneck.parameters(), config.train.clip)
        optimizer.step()


@torch.no_grad()
def selection_error(bottleneck: Bottleneck, held_out: TokenStats) -> float:
    """Normalised error on the selection split."""
    mask = torch.ones(1, len(held_out.ids), dtype=torch.bool)
    error = (bottleneck(held_out.embeds[None], mask)[0] - held_out.embeds).double().square().mean(1)
    return float(held_out.shares @ error) / held_out.variance


def new_bottleneck(config: RunConfig, session: Session) -> Bottleneck:
    """The default bottleneck, PCA to an eighth and a residual adapter, not yet fitted."""
    return Bottleneck.build(resolve(config, load_plugins()), "free", session.table.shape[1], config.seed)


def main() -> None:
    """Run both sides and print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--fast-steps", type=int, default=10)
    args = parser.parse_args()
    slow_steps = args.prompts * args.epochs // BATCH_PROMPTS
    base = validate(merge({}, {}, [f"data.train={args.prompts}", *PLAIN]))
    session = Session.open(base, Progress(), weights="table")
    prompts = session.prompts(session.data.train)
    held_out = count_tokens(session.prompts(session.data.selection), session.table)

    begun = time.perf_counter()
    fast = new_bottleneck(base, session)
    stats = count_tokens(prompts, session.table)
    fast.fit(stats, session.table)
    fast_fit = time.perf_counter() - begun
    start = selection_error(fast, held_out)
    config = validate(merge({}, {}, [f"train.steps={args.fast_steps}", *PLAIN]))
    begun = time.perf_counter()
    train(fast, TokenBatches(stats, len(stats.ids), config.seed), config, stats.variance)
    with torch.no_grad():
        fast.adapter.solve_last_layer(fast.encode_rows, stats)
    fast_train = time.perf_counter() - begun

    begun = time.perf_counter()
    slow = new_bottleneck(base, session)
    fit_pca_on_prompts(slow, prompts, session.table)
    slow_fit = time.perf_counter() - begun
    config = validate(merge({}, {}, [f"train.steps={slow_steps}", *PLAIN]))
    once = occurrence_weights(stats, config.train.uniform, session.table)
    loop = PromptBatches(prompts, session.table, once, BATCH_PROMPTS, config.seed)
    begun = time.perf_counter()
    train(slow, loop, config, stats.variance)
    slow_train = time.perf_counter() - begun

    result = {
        "prompts": len(prompts),
        "positions": int(stats.weights.sum()),
        "distinct_tokens": len(stats.ids),
        "selection_error_before": start,
        "fast": {
            "fit_s": fast_fit,
            "train_s": fast_train,
            "selection_error": selection_error(fast, held_out),
        },
        "prompt_by_prompt": {
            "fit_s": slow_fit,
            "train_s": slow_train,
            "steps": slow_steps,
            "selection_error": selection_error(slow, held_out),
        },
        "speed_up": (slow_fit + slow_train) / (fast_fit + fast_train),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

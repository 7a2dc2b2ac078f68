"""Rate and reconstruction error of trained token-wise runs over the whole test split, without the LLM.

    python tools/recovery.py RUN …

Of each run two lines of JSON: through its adapter, and through its compressor's own inverse.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from stage1.bottleneck.statistics import count_tokens
from stage1.evaluation.rate import rate
from stage1.evaluation.reconstruction import Positions, reconstructed_rows, reconstruction
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.session import Session


@torch.no_grad()
def measure(run: Run) -> Iterator[tuple[str, dict[str, float | None]]]:
    """Name of the decoder, and what `results.json` says of rate and reconstruction, of all test questions."""
    session = Session.open(run.config, Progress(), weights="table", trained_on=run.read_trained_on())
    prompts = session.prompts(session.data.test)
    stats, bottleneck = count_tokens(prompts, session.table), session.load_bottleneck(run)
    bits: dict[str, float | None] = {**rate(bottleneck, prompts, stats, session.table)}
    decoders = {"adapter": bottleneck.reconstruct, "inverse": bottleneck.reconstruct_linear}
    for name, decode in decoders.items():
        rows = reconstructed_rows(decode, stats.embeds)
        crossing = Positions(stats.ids, stats.weights, stats.embeds, rows)
        yield name, bits | (reconstruction(crossing, stats.variance, session.table, bottleneck.seen) or {})


if __name__ == "__main__":
    for folder in map(Path, sys.argv[1:]):
        for decoder, found in measure(Run(folder)):
            print(json.dumps({"run": str(folder), "decoder": decoder, **found}))

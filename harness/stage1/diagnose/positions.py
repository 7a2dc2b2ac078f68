"""The rebuilt vectors of the prompts asked, beside the originals: what several probes look at."""

from typing import NamedTuple

import torch
from torch import Tensor

from stage1.diagnose.case import Case
from stage1.evaluation.measures import rebuilt_rows


class Positions(NamedTuple):
    """The positions that cross: each once, or, where a vector depends on its token alone, each token once."""

    ids: Tensor  # [N] the original tokens
    counts: Tensor  # [N] float64: how many positions each stands for
    original: Tensor  # [N, D] float32
    rebuilt: Tensor  # [N, D] float32

    @property
    def shares(self) -> Tensor:
        """[N] float64: each one's share of all positions; sums to 1."""
        return self.counts / self.counts.sum()


@torch.no_grad()
def positions(case: Case) -> Positions | None:
    """What crosses in the case's prompts, in their order; None if the compressor changes the length."""
    bottleneck = case.bottleneck
    if bottleneck.compressor.changes_length:
        return None
    if bottleneck.tokenwise:
        stats = case.stats
        rebuilt = rebuilt_rows(bottleneck.rebuild, stats.embeds)
        return Positions(stats.ids, stats.counts, stats.embeds, rebuilt.float())
    ids, rows = [], []
    for batch in case.batches():
        ids.append(batch.ids[batch.cross])
        rows.append(bottleneck(batch.embeds, batch.cross)[batch.cross].float())
    crossing = torch.cat(ids)
    once = torch.ones(len(crossing), dtype=torch.float64, device=crossing.device)
    return Positions(crossing, once, case.inputs.table[crossing].float(), torch.cat(rows))

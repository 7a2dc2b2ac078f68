"""Does better reconstruction mean better answers? The run's checkpoints, recon beside F1."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from stage1.diagnosis.case import Case

IMPROVED = 0.05
"""Share by which recon must have fallen between two checkpoints."""
FELL = 5.0
"""Points by which F1 must have fallen between them."""
CERTAIN = 3 * math.sqrt(2)
"""Standard errors of one F1 beyond which a fall between two is no chance: three of their difference's. Every
pair of checkpoints is compared, so twice would find a fall in four of five runs whose F1 never changes."""
SHOWN = 3


def measure(case: Case) -> dict[str, Any]:
    """Pairs of checkpoints between which recon improved and F1 fell, and their rank correlation.

    A fall counts only beyond `CERTAIN` standard errors of F1 (0 to 100), taken for that of a proportion:
    100·√(p(1 − p)/n) with p the mean of the two and n the questions asked at each check. Recon is lower
    where it is better, so a correlation near −1 is the healthy one. Runs that asked nothing have no
    checkpoints here, nor have those whose compressor changes the length.
    """
    checkpoints = [
        {"step": entry["step"]} | {name: entry["selection"][name] for name in ("recon", "f1", "questions")}
        for entry in case.metrics
        if {"recon", "f1"} <= entry["selection"].keys()
    ]
    pairs = [_pair(a, b) for a, b in combinations(checkpoints, 2) if _diverged(a, b)]
    pairs.sort(key=lambda pair: pair["f1_to"] - pair["f1_from"])
    recon, f1 = ([point[name] for point in checkpoints] for name in ("recon", "f1"))
    return {"checkpoints": checkpoints, "diverged": pairs[:SHOWN], "correlation": spearman(recon, f1)}


def _diverged(early: dict[str, float], late: dict[str, float]) -> bool:
    p = (early["f1"] + late["f1"]) / 200
    noise = 100 * math.sqrt(p * (1 - p) / early["questions"])
    fall = early["f1"] - late["f1"]
    return late["recon"] <= (1 - IMPROVED) * early["recon"] and fall >= FELL and fall > CERTAIN * noise


def _pair(early: dict[str, float], late: dict[str, float]) -> dict[str, Any]:
    return {
        "from": early["step"],
        "to": late["step"],
        "recon_from": early["recon"],
        "recon_to": late["recon"],
        "f1_from": early["f1"],
        "f1_to": late["f1"],
    }


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Rank correlation, −1 to 1, equal values sharing their mean rank.

    None for fewer than four pairs, or where one side never changes.
    """
    if len(one) < 4 or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    from scipy.stats import spearmanr  # half a second that nobody else need wait for

    return float(spearmanr(one, other).statistic)

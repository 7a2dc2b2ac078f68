"""What the rules read, every measurement with the F1 of each stage and variant at hand; what they find."""

from collections.abc import Mapping
from typing import Any, NamedTuple

NOTABLE = 3.0
"""Points of F1 below which a difference on a few hundred questions is no finding."""


class Found(NamedTuple):
    """A cause that a rule has found; `findings.CAUSES` has the words for it."""

    cause: str
    explains: float  # points of F1
    evidence: list[str]
    words: Mapping[str, object] = {}  # what the cause's title and command leave open
    least: str | None = None  # severity at least; None: as the cause says


class Facts:
    """The measurements, with the F1 of every stage and variant by name."""

    def __init__(self, measured: Mapping[str, Any]) -> None:
        self.measured = measured
        ablation = measured["ablation"]
        self.rows: dict[str, Any] = {e["name"]: e for e in ablation["stages"] + ablation["variants"]}
        self.f1: dict[str, float] = {name: row["f1"] for name, row in self.rows.items()}
        self.protocol: dict[str, Any] = measured["protocol"]
        self.statistics: dict[str, Any] = measured["statistics"] or {}
        self.tokens: dict[str, Any] = measured["tokens"] or {}
        self.objective: dict[str, Any] = measured["objective"]
        self.compressor: dict[str, Any] = measured["compressor"]
        self.diverged: list[dict[str, Any]] = measured["divergence"]["diverged"]
        self.text: float = self.protocol["text_f1"]
        self.ours: float = self.f1["bottleneck"]

    def reach(self, *names: str) -> float:
        """F1 of the best of these variants that do better than the bottleneck beyond chance; else its own.

        Beyond chance: the paired 95 % interval of the difference lies above 0.
        """
        better = [name for name in names if name in self.rows and self.rows[name]["gain_ci95"][0] > 0]
        return max([self.ours, *(self.f1[name] for name in better)])

    @property
    def untrained(self) -> float:
        """What no training at all reaches: the compressor's inverse or the closed-form decoder."""
        return self.reach("inverse", "closed_form")

    @property
    def norm(self) -> float | None:
        """Median norm ratio."""
        ratio = self.statistics.get("norm_ratio")
        return ratio["median"] if ratio else None

    @property
    def norms_off(self) -> bool:
        """Reconstructed vectors are typically a quarter too long or a fifth too short."""
        return self.norm is not None and not 0.8 <= self.norm <= 1.25

    @property
    def blind(self) -> bool:
        """There was training, and its objective does not notice how long the reconstructed vectors are."""
        return bool(self.objective["terms"] and self.objective["magnitude_blind"])

"""The training objective: a weighted sum of losses, and what each of them contributes."""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from stage1.plugins import Resolved
from stage1.plugins.blame import built, expect
from stage1.plugins.interfaces import Loss
from stage1.plugins.tensors import LossInputs

DECAY = 0.95
"""Of the running mean that an `auto` term is divided by: it remembers about 20 steps."""


class Objective(nn.Module):
    """The weighted sum of the losses.

    A weight is a number, or `auto`: the term is divided by the running mean of its own values, so that all
    such terms pull alike whatever their units. Either may rise linearly from zero over `ramp` steps.
    """

    def __init__(self, resolved: Resolved) -> None:
        super().__init__()
        self.terms = resolved.losses
        self.losses: dict[str, Loss] = {name: built(c) for name, c in resolved.losses.items()}
        self._registered = nn.ModuleList(self.losses.values())  # so that `.to(device)` reaches them
        self.running: dict[str, list[float]] = {}  # term → decayed sum of its values, decayed count

    # -- what it asks for ----------------------------------------------------------------------------------

    @property
    def needs_llm(self) -> bool:
        """True if a term reads the LLM's outputs."""
        return any(loss.needs_llm for loss in self.losses.values())

    @property
    def teacher_forced(self) -> bool:
        """True if a term reads the gold answers."""
        return any(loss.teacher_forced for loss in self.losses.values())

    @property
    def layers(self) -> set[int]:
        """The layers of the LLM whose outputs the terms read."""
        return {k for loss in self.losses.values() if loss.needs_llm for k in loss.layers or ()}

    @property
    def reads_last_states(self) -> bool:
        """True if a term reads the LLM's last states."""
        return any(loss.needs_llm and loss.layers is None for loss in self.losses.values())

    @property
    def tokenwise(self) -> bool:
        """True if every term is a weighted mean over positions that looks at one position at a time."""
        return all(loss.tokenwise for loss in self.losses.values())

    @property
    def mixed(self) -> bool:
        """True if some terms look at one position at a time, and others do not."""
        return not self.tokenwise and any(loss.tokenwise for loss in self.losses.values())

    @property
    def least_squares(self) -> bool:
        """True if weighted least squares minimises a term of it, and undoes none that compares tokens."""
        terms = self.losses.values()
        return any(loss.least_squares for loss in terms) and not any(loss.contrastive for loss in terms)

    # -- its value -----------------------------------------------------------------------------------------

    def forward(self, inputs: LossInputs, tokens: LossInputs | None = None) -> dict[str, Tensor]:
        """Each term's own value; of token-wise ones on `tokens`, where there are any beside the prompts."""
        values = {}
        for name, loss in self.losses.items():
            value = loss(self._seen(loss, inputs, tokens))
            sound = getattr(value, "ndim", None) == 0
            values[name] = expect(loss, "forward", value, Tensor, "a scalar tensor", sound)
        return values

    def denominators(self, inputs: LossInputs, tokens: LossInputs | None = None) -> dict[str, Tensor]:
        """What each term divides by, float64: values of parts, weighted by these, are that of the whole."""
        return {
            name: loss.denominator(self._seen(loss, inputs, tokens)).double()
            for name, loss in self.losses.items()
        }

    @staticmethod
    def _seen(loss: Loss, inputs: LossInputs, tokens: LossInputs | None) -> LossInputs:
        return tokens if tokens is not None and loss.tokenwise else inputs

    @staticmethod
    def total(values: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        """The weighted sum of the terms."""
        return torch.stack([weights[name] * value for name, value in values.items()]).sum()

    def weights(self, step: int) -> dict[str, float]:
        """Each term's factor at optimiser step `step`; `observe` must have seen values of `auto` terms."""
        scales = self.scales({name: total / count for name, (total, count) in self.running.items()})
        ramps = {name: term.ramp for name, term in self.terms.items()}
        return {name: w * min(1.0, (step + 1) / (ramps[name] or 1)) for name, w in scales.items()}

    def scales(self, typical: Mapping[str, float]) -> dict[str, float]:
        """Each term's full weight, where the `typical` values of `auto` terms are to count 1."""
        return {
            name: 1 / max(abs(typical[name]), 1e-12) if term.weight == "auto" else term.weight
            for name, term in self.terms.items()
        }

    @property
    def lacks_means(self) -> bool:
        """True until values of the `auto` terms were seen."""
        return any(t.weight == "auto" and name not in self.running for name, t in self.terms.items())

    def observe(self, values: Mapping[str, float]) -> None:
        """Count a step's `values` of the terms into their running means."""
        for name, value in values.items():
            total, count = self.running.get(name, (0.0, 0.0))
            self.running[name] = [DECAY * total + value, DECAY * count + 1]


def contributions(values: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """What `metrics.jsonl` says of each term: `value`, `weight`, and its `share` of the total, 0 to 1."""
    pulls = {name: abs(weights[name] * value) for name, value in values.items()}
    whole = sum(pulls.values()) or 1.0
    return {
        name: {"value": value, "weight": weights[name], "share": pulls[name] / whole}
        for name, value in values.items()
    }


def gradients(values: Mapping[str, Tensor], parameters: Iterable[Tensor]) -> dict[str, Any]:
    """How the terms' own gradients compare: `norm` by term, `cosine` by pair ("a~b"), −1 to 1.

    Two terms whose cosine is negative work against each other.
    """
    parameters = list(parameters)
    flat = {}
    for name, value in values.items():
        parts = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(parts, parameters, strict=True)
        flat[name] = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
    norms = {name: float(vector.norm()) for name, vector in flat.items()}
    cosines = {
        f"{a}~{b}": float(flat[a] @ flat[b]) / max(norms[a] * norms[b], 1e-30)
        for a, b in combinations(flat, 2)
    }
    return {"norm": norms, "cosine": cosines}

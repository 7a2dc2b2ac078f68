"""At which rates methods can be set, and which settings of several methods stand at the same rate."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.config import RunConfig
from stage1.errors import ConfigError, UsageError
from stage1.plugins import Resolved, load_plugins, resolve
from stage1.plugins.blame import attributed
from stage1.sweeps.search import Cells

FINER = 1.1
"""Factor, at least, between two rates that are told apart."""

POSITIONS = 64
"""Rows of the table that a code is counted on."""

Axis = Literal["bits", "ratio"]
"""What a rate is: bits of a position's code, or the embeddings' width divided by the code's."""


class Setting(NamedTuple):
    """A method at one of its rates."""

    options: Mapping[str, Any]  # dotted path → value
    cost: float  # bits of a position, or the code's width


@attributed()
def ladder(config: RunConfig, table: Tensor, axis: Axis) -> list[Setting]:
    """The settings of the method `config`, cheapest first, each at least a tenth costlier than the last.

    The rate is that of the first compressor whose `rates` change what the axis measures. It is counted on a
    bottleneck as it is built, which has not seen any data: where bits depend on what is fitted, they order a
    method's own settings and say little about others'. What is reported of a run is always measured.

    Args:
        config: with the options as the user gave them.
        table: the embedding table [V, D].
        axis: what is measured.

    Raises:
        UsageError: nothing sets its rate.
    """
    resolved = resolve(config, load_plugins())
    stages = Bottleneck.build(resolved, config.magnitude, table.shape[1], config.seed).stages
    for place, stage in enumerate(stages):
        named = resolved.compressors[place]
        rates = _thinned(named.cls.rates(named.config, stage.embed_dim))
        settings = [
            Setting({f"{named.path}.{key}": value for key, value in options.items()}, cost)
            for options in rates
            if (cost := _cost(_with(resolved, place, options), config, table, axis)) is not None
        ]
        if len({setting.cost for setting in settings}) > 1:
            return sorted(settings, key=lambda setting: setting.cost)
    what = "bits" if axis == "bits" else "width"
    names = " → ".join(config.compressor_names)
    remedy = (
        "Use --axis bits." if axis == "ratio" else "Its class says so in `rates`, see the plugins' guide."
    )
    raise UsageError(f"No option of {names} is known to set the {what} of its code.", remedy)


def _thinned(rates: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Fewer of many, in steps of `FINER`: what is built for each takes time."""
    kept, least = [], 1.0
    for number, options in enumerate(rates, 1):
        if number >= least or number == len(rates):
            kept.append(options)
            least = number * FINER
    return kept


def _with(resolved: Resolved, place: int, options: Mapping[str, Any]) -> Resolved:
    compressors = list(resolved.compressors)
    named = compressors[place]
    config = named.cls.Config.model_validate({**named.config.model_dump(exclude_unset=True), **options})
    compressors[place] = named._replace(config=config)
    return resolved._replace(compressors=compressors)


@torch.inference_mode()
def _cost(resolved: Resolved, config: RunConfig, table: Tensor, axis: Axis) -> float | None:
    """What a position of the bottleneck costs; None where its parts do not go together."""
    try:
        built = Bottleneck.build(resolved, config.magnitude, table.shape[1], config.seed).to(table.device)
    except ConfigError:
        return None
    if axis == "ratio":
        return float(built.compressor.code_dim)
    rows = table[None, :POSITIONS].float()
    mask = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
    return float(built.code_bits(built.encode(rows, mask))) / rows.shape[1]


def align(ladders: Sequence[Sequence[Setting]]) -> Cells:
    """At each rate of all ladders, cheapest first, the setting of each ladder that costs no more."""
    rates: list[float] = []
    for cost in sorted({setting.cost for steps in ladders for setting in steps}, reverse=True):
        if not rates or FINER * cost <= rates[-1]:
            rates.append(cost)
    return [
        [max((i for i, s in enumerate(steps) if s.cost <= rate), default=None) for steps in ladders]
        for rate in reversed(rates)
    ]

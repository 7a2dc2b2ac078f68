"""The resumable state of a training, as tensors and JSON facts: what `state/state.safetensors` holds.

Everything is stored under a name: a parameter that is not trained any more cannot take another one's place.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.training.course import Course
from stage1.training.objective import Objective
from stage1.training.schedule import Mean
from stage1.training.selection import Selection
from stage1.training.step import Stepper

Tensors = Mapping[str, Tensor]


def collect(
    course: Course,
    bottleneck: Bottleneck,
    stepper: Stepper,
    objective: Objective,
    selection: Selection,
    mean: Mean | None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights now, at their best and on average, the optimiser's moments, and where training stands."""
    tensors = {f"now.{name}": value for name, value in bottleneck.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in course.best.items()}
    tensors |= {f"mean.{name}": value for name, value in (mean.values if mean else {}).items()}
    names = list(stepper.weights)
    for index, slots in stepper.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{names[index]}.{slot}": value for slot, value in slots.items()}
    facts = {
        **course.facts,
        "frozen": sorted(bottleneck.frozen),
        "parts": stepper.parts,
        "running": objective.running,
        "typical": selection.typical,
    }
    return tensors, facts


def restore_bottleneck(bottleneck: Bottleneck, tensors: Tensors, facts: Mapping[str, Any]) -> None:
    """The weights as they were, and which of them are trained; before an optimiser is given them."""
    bottleneck.load_state_dict(_part(tensors, "now."))
    bottleneck.freeze(facts["frozen"])


def restore(
    tensors: Tensors,
    facts: Mapping[str, Any],
    stepper: Stepper,
    objective: Objective,
    selection: Selection,
    mean: Mean | None,
) -> Course:
    """Everything else."""
    names = list(stepper.weights)
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in _part(tensors, "optimizer.").items():
        name, _, slot = key.rpartition(".")
        slots.setdefault(names.index(name), {})[slot] = value
    if stepper.optimizer is not None:
        stepper.optimizer.load_state_dict({**stepper.optimizer.state_dict(), "state": slots})
    if mean is not None:
        mean.values |= _part(tensors, "mean.")
    stepper.parts = facts["parts"]
    objective.running, selection.typical = facts["running"], facts["typical"]
    return Course(**{name: facts[name] for name in Course().facts}, best=_part(tensors, "best."))


def _part(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

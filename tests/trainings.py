"""Small trainings on the embedded model: a trainer, a trained run, its weights."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from conftest import NARROW, embedded, small_config
from stage1.config import RunConfig
from stage1.plugins import Resolved, ResolvedLoss, load_plugins, resolve
from stage1.plugins.interfaces import Loss
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.session import Session
from stage1.training.trainer import Trainer


def trainer_for(
    config: RunConfig,
    *,
    loss: type[Loss] | None = None,
    progress: Progress | None = None,
    session: Session | None = None,
) -> Trainer:
    """A trainer, with `loss` alone where it is given."""
    session = session or Session.open(config, progress or Progress(), before=embedded())
    resolved: Resolved = resolve(config, load_plugins())
    if loss is not None:
        resolved = resolved._replace(losses={loss.name: ResolvedLoss(loss, loss.Config(), 1.0)})
    return Trainer(resolved, session)


def trained(
    path: Path, *settings: str, loss: type[Loss] | None = None, progress: Progress | None = None
) -> Run:
    """A new run with a narrow adapter, unless `settings` name another."""
    config = small_config(NARROW, f"output={path}", *settings)
    trainer = trainer_for(config, loss=loss, progress=progress)
    run = Run.create(config)
    trainer.train(run)
    return run


def results_of(run: Run | Path) -> dict[str, Any]:
    """What an evaluated run's results.json says."""
    found = (run if isinstance(run, Run) else Run(run)).read_results()
    assert found is not None
    return found


def weights(run: Run | Path) -> dict[str, torch.Tensor]:
    return load_file((run.path if isinstance(run, Run) else run) / "bottleneck.safetensors")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)

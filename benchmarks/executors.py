"""One sweep of 24 small runs, carried out here, in two processes, and on a Ray cluster that loses a node.

    python benchmarks/executors.py             # JSON: seconds of each, and whether the tables are equal

The cluster is two nodes of one core, as processes of this machine; one is killed when the third run is done.
Every place has an empty cache and one thread, so that all of them compute the same.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in every process
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from stage1.files import read_record
from stage1.plugins.executors import Executor
from stage1.progress import Progress
from stage1.sweeps.grid import Axis, plan
from stage1.sweeps.sweep import Sweep
from stage1.sweeps.worker import executor

AXES = [
    Axis("compressor.ratio", [4, 8, 16, 32]),
    Axis("compressor", ["pca", "random_projection", "learned_linear"]),
    Axis("adapter", ["linear", "residual"]),
]
SETTINGS = ["data.train=300", "data.selection=60", "train.steps=50", "eval.limit=100"]


class Counted(Progress):
    """Calls `act` once, when so many runs are done."""

    def __init__(self, number: int, act: Any) -> None:
        super().__init__()
        self.left, self.act = number, act

    def note(self, message: str) -> None:
        """See `Progress.note`."""
        self.left -= message.endswith("done.")
        if not self.left and self.act is not None:
            self.act()
            self.act = None


@contextmanager
def cluster() -> Iterator[Any]:
    """A head without cores and two nodes of one."""
    from ray.cluster_utils import Cluster

    patient = {"health_check_timeout_ms": 60_000}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": patient})
    try:
        yield made
    finally:
        made.shutdown()  # type: ignore[no-untyped-call]


def swept(folder: Path, place: Executor | None, progress: Progress) -> tuple[float, list[Any]]:
    """Seconds of the sweep, and the results of its runs."""
    os.environ["STAGE1_CACHE"] = str(folder / "cache")
    grid = Sweep(folder / "sweep", AXES, plan({}, SETTINGS, AXES, [0], folder / "sweep"))
    begun = time.perf_counter()
    grid.run(progress, place)
    seconds = time.perf_counter() - begun
    cells = read_record(folder / "sweep" / "sweep.json", "")["cells"]
    return seconds, [(cell["run"], cell["results"], cell["error"]) for cell in cells]


def main() -> None:
    """Measure, and print what was found."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        here, expected = swept(root / "here", None, Progress())
        found: dict[str, Any] = {"runs": len(expected), "here": {"seconds": here}}
        local, table = swept(root / "local", executor("local", 2, {}), Progress())
        found["jobs 2"] = {"seconds": local, "equal": table == expected}
        with cluster() as made:
            nodes = [made.add_node(num_cpus=1) for _ in range(2)]
            place = executor("ray", None, {"address": made.address})
            kill = Counted(3, lambda: made.remove_node(nodes[0], allow_graceful=False))
            on_ray, table = swept(root / "ray", place, kill)
        found["ray, one of two nodes killed"] = {"seconds": on_ray, "equal": table == expected}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

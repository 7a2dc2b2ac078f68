"""The run's log: an entry for each measurement, as a line of JSON in metrics.jsonl."""

import json
from pathlib import Path
from typing import Any

from stage1 import hookimpl
from stage1.files import write_json_lines
from stage1.runs.run import METRICS, Run


@hookimpl
def stage1_run_start(run: Path, step: int) -> None:
    # What a killed run had logged beyond its last state is measured again.
    if (run / METRICS).exists():
        write_json_lines(run / METRICS, (e for e in Run(run).metrics() if e["step"] <= step))


@hookimpl
def stage1_step(run: Path, step: int, metrics: dict[str, Any]) -> None:
    with (run / METRICS).open("a" if step else "w", encoding="utf-8") as file:  # step 0 begins a new log
        file.write(json.dumps(metrics) + "\n")

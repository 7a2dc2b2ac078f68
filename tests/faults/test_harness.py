"""A sample of the fault harness; `python tests/faults/harness.py` gives more, with counts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("harness.py")
KILLS, INPUTS = 10, 80


@pytest.mark.slow
def test_nothing_breaks(tmp_path: Path) -> None:
    """In a process of its own, as its audit hooks and its patches stay."""
    command = [sys.executable, str(HARNESS), "--kills", str(KILLS), "--inputs", str(INPUTS), "--seed", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {what: count for count, what in (line.split(maxsplit=1) for line in done.stdout.splitlines())}
    assert int(counts["kills"]) >= KILLS
    kinds = ("configuration", "setting", "data", "damaged", "forged", "model", "plugin", "text")
    assert [counts[kind] for kind in kinds] == [str(INPUTS // len(kinds))] * len(kinds)

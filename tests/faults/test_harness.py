"""A sample of the fault harness; `python tests/faults/harness.py` gives more, with counts."""

import pytest

from faults.harness import run


@pytest.mark.slow
def test_nothing_breaks() -> None:
    counts = run(kill=6, give=90, seed=1)
    assert counts["kills"] >= 6
    assert counts["configuration"] + counts["setting"] + counts["run folder"] == 90
    assert not [what for what in counts if what.startswith("broken")]

"""Rate and reconstruction error of trained runs over the whole test split, without the LLM.

python tools/recovery.py RUN …
"""

import json
import sys

from stage1.bottleneck.statistics import count_tokens
from stage1.evaluation.rate import rate
from stage1.evaluation.reconstruction import positions, reconstruction
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.session import Session


def measure(run: Run) -> dict[str, float]:
    """What `results.json` says of them, of all test questions."""
    session = Session.open(run.config, Progress(), weights="table", trained_on=run.read_trained_on())
    prompts = session.prompts(session.data.test)
    stats, table = count_tokens(prompts, session.table), session.table
    bottleneck = session.load_bottleneck(run)
    crossing = positions(bottleneck, prompts, stats, table)
    found = rate(bottleneck, prompts, stats, table)
    return found | (reconstruction(crossing, stats.variance, table) or {})


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(json.dumps({"run": name, **measure(Run(name))}))

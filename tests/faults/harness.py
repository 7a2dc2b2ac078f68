"""Faults on purpose, with counts: `python tests/faults/harness.py --kills 100 --inputs 500 --seed 0`.

`--kills`: processes are killed at changes of files, the same call is made again, killed again, and made once
more: what is there in the end must be what is there when nobody disturbs it, to the bit, and nothing besides.
`--inputs`: what strangers write (configurations, data, runs, models, plugins, texts) is mutated, and a
command is given it. It must end with 0, 1, 2, 3 or 130, with a short message of plain text without a
traceback, and must have changed nothing but what it was told to. `--kinds` chooses some; each has its share.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from faults.inputs import KINDS, inputs
from faults.kills import SCENARIOS, kills
from faults.warm import begin


def run(given: argparse.Namespace) -> Counter[str]:
    """So many kills and inputs, of all kinds or of some, each in a folder of its own; what came of it."""
    counts: Counter[str] = Counter()
    give: Callable[[str, int, int, Path], Counter[str]] = partial(inputs, first=given.first)
    wanted = given.kinds.split(",") if given.kinds else [*SCENARIOS, *KINDS]
    with tempfile.TemporaryDirectory() if given.within is None else nullcontext(given.within) as made:
        folder = Path(made).resolve()
        begin(folder)
        for every, most, work in ((SCENARIOS, given.kills, kills), (KINDS, given.inputs, give)):
            chosen = [kind for kind in every if kind in wanted]
            for number, kind in enumerate(chosen):
                place = folder / kind
                place.mkdir()
                os.chdir(place)
                share, began = most // len(chosen) + (number < most % len(chosen)), time.monotonic()
                found = work(kind, share, given.seed, place) if share else Counter()
                for what, count in sorted(found.items()):
                    print(f"{count:7,}  {kind}: {what}")
                print(f"{time.monotonic() - began:7.0f}  {kind}: seconds", flush=True)
                counts += found
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for option, default in (("--kills", 100), ("--inputs", 500), ("--seed", 0), ("--first", 0)):
        parser.add_argument(option, type=int, default=default)
    parser.add_argument("--kinds", default="", help=f"of {', '.join([*SCENARIOS, *KINDS])}")
    parser.add_argument("--within", help="an empty folder for what is written, which stays")
    found = run(parser.parse_args())
    for what, count in sorted(found.items()):
        print(f"{count:7,}  {what}")
    sys.exit(any(what.startswith("broken") for what in found))

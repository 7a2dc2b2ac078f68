"""A process is killed at a change of a file: the same call, made again, must end as if nothing had been."""

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from faults.processes import OUTSIDE, watched
from faults.warm import SMALL, config
from stage1.api import sweep
from stage1.config import merge, overlay, validate
from stage1.config.presets import RECIPES
from stage1.experiment import evaluate_run, train_run
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.scaffold import KINDS, create

Work = Callable[[Path], object]


class Scenario(NamedTuple):
    """A call that is killed."""

    work: Work  # in a folder of its own; begins, or goes on
    prepare: Work = lambda place: None  # what must be there before


def _train(place: Path) -> None:
    run = place / "run"
    train_run(config(f"output={run}"), Progress(), resume=Run.begun(run))


def _trained(place: Path) -> None:
    train_run(config(f"output={place / 'run'}"), Progress(), with_evaluation=False)


def _evaluate(**overrides: Any) -> Work:
    return lambda place: evaluate_run(Run.open(place / "run"), overrides, Progress())


def _two_phases(below: float) -> Work:
    few = ("then.train.steps=2", "then.train.check_every=1", "then.train.save_every=1", f"then.below={below}")

    def work(place: Path) -> None:
        run = place / "run"
        tree = overlay(merge({}, {}, SMALL), RECIPES.find("two_phase").settings)
        chosen = validate(merge(tree, {}, (*few, "train.check_prompts=4", f"output={run}")))
        train_run(chosen, Progress(), resume=Run.begun(run))

    return work


def _sweep(place: Path) -> None:
    sweep({"compressor.ratio": [16, 64]}, place / "sweep", **merge({}, {}, [*SMALL[:-2], "train.steps=1"]))


def _new(kind: str) -> Work:
    def work(place: Path) -> None:
        if not (place / "stage1-killed").exists():  # it appears as a whole
            create("killed", kind, place, Progress())

    return work


SCENARIOS: dict[str, list[Scenario]] = {
    "train": [Scenario(_train)],
    "eval": [Scenario(_evaluate(), _trained), Scenario(_evaluate(**{"eval.limit": 3}), _trained)],
    "sweep": [Scenario(_sweep)],
    "two_phase": [Scenario(_two_phases(1.0)), Scenario(_two_phases(0.01))],
    "new": [Scenario(_new(kind)) for kind in KINDS],
}
"""By kind, what is killed."""

DATED = ("timings.json", "sweep.csv")
"""Files that say how long something took: only that they are there must not depend on kills."""

TIMES = {"created", "seconds", "sha256", "files", "training_seconds"}
"""Keys of JSON that depend on the clock, or are hashes of what does."""


def outcome(place: Path) -> dict[str, Any]:
    """Every file below `place` with its content but for times; of caches, the names alone."""
    return {
        str(path.relative_to(place)): None
        if path.name in DATED or "cache" in path.relative_to(place).parts
        else _timeless(path)
        for path in sorted(place.rglob("*"))
        if not path.is_dir()
    }


def _timeless(path: Path) -> Any:
    content = path.read_bytes()
    if path.suffix not in (".json", ".jsonl"):
        return content
    trees = [json.loads(line) for line in ([content] if path.suffix == ".json" else content.splitlines())]
    return [_without_times(tree) for tree in trees]


def _without_times(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_times(value) for key, value in tree.items() if key not in TIMES}
    return [_without_times(value) for value in tree] if isinstance(tree, list) else tree


def kills(kind: str, most: int, seed: int, folder: Path) -> Counter[str]:
    """Kill each scenario of a kind at changes of files, all of them if `most` kills allow it, and once more
    on the way; what came of it.
    """
    counts: Counter[str] = Counter()
    for number, scenario in enumerate(SCENARIOS[kind]):
        share = most // len(SCENARIOS[kind]) + (number < most % len(SCENARIOS[kind]))
        counts += _killed(scenario, kind, share, Random(f"{seed} {kind} {number}"), folder)
    return counts


def _killed(scenario: Scenario, kind: str, most: int, random: Random, folder: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    now, before = folder / "now", folder / "before"
    place, cache = now / "place", now / "cache"
    os.environ["STAGE1_CACHE"] = str(cache)

    def work() -> None:
        scenario.work(place)

    for left in (now, before):
        shutil.rmtree(left, ignore_errors=True)
    for made in (place, cache):
        made.mkdir(parents=True)
    scenario.prepare(place)
    shutil.copytree(now, before)
    undisturbed = watched(folder, work)
    if undisturbed.code:
        return Counter({f"broken: code {undisturbed.code} without a kill": 1})
    wanted = outcome(folder)
    every = random.sample(range(1, undisturbed.changes + 1), undisturbed.changes)
    for first in chain(every, (random.choice(every) for _ in repeat(None))):
        if counts["kills"] >= most:
            break
        shutil.rmtree(now)
        shutil.copytree(before, now)
        for nth in (first, random.randrange(1, undisturbed.changes + 1)):
            watch = watched(folder, work, nth)
            counts["kills"] += watch.killed
        finished = watch if watch.code == 0 else watched(folder, work)
        if finished.code:
            faults = ["outside" if finished.code == OUTSIDE else f"ends with {finished.code}"]
        else:
            found = outcome(folder)
            faults = [
                f"{'left over' if name not in wanted else 'missing' if name not in found else 'other'} {name}"
                for name in sorted(wanted.keys() | found.keys())
                if wanted.get(name, 0) != found.get(name, 0)
            ]
        counts["cases"] += 1
        counts.update(f"broken: {fault.partition(' now')[0]}" for fault in faults)
        for fault in faults:
            print(f"{kind}, killed at {first} and {nth}: {fault}", file=sys.stderr)
    return counts

"""Finished runs against each other, paired on the questions that all of them were asked."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from stage1.config import settings_of
from stage1.errors import UsageError
from stage1.evaluation.statistics import LEVEL, Comparison, Difference, Floats, holm, paired
from stage1.evaluation.summary import METRICS
from stage1.evaluation.verdict import FEW_PASSAGES
from stage1.inspection.finished import evaluated
from stage1.progress import Progress
from stage1.runs.answers import Answer
from stage1.runs.run import Run

Interval = tuple[float, float]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Mean(_Record):
    """A metric over the common questions, 0 to 100; the interval is over passages."""

    mean: float
    ci95: Interval
    spread: float | None
    """Standard deviation of the runs' means; None for a single run."""


class Side(_Record):
    """What is compared: a run, or the runs that differ in their seed alone."""

    label: str
    """`A`, `B`, …"""
    runs: list[str]
    seeds: list[int]
    settings: dict[str, Any]
    """Those in which the sides differ."""
    bits_per_token: float
    f1: Mean
    exact_match: Mean


class Tested(_Record):
    """The difference of two means, second − first, and its test (`stage1.evaluation.statistics`)."""

    difference: float
    ci95: Interval
    bootstrap_ci95: Interval
    """The percentile bootstrap over passages, as in the tables of single runs."""
    p: float
    p_holm: float
    """Corrected for the number of pairs."""
    detectable: float | None
    """The smallest true difference that these questions would have shown four times in five."""
    found: bool
    """A difference is claimed: `p_holm` is below 0.05."""


class Flip(_Record):
    """A question that one side answers rightly and the other does not, in most of their runs."""

    id: str
    question: str
    gold: tuple[str, ...]
    first: list[str]
    """The answers of the first side, one for each run."""
    second: list[str]
    gained: bool
    """The second side is right."""
    first_prompt: list[dict[str, Any]] | None = None
    second_prompt: list[dict[str, Any]] | None = None


class Pair(_Record):
    """Two sides; differences are the second's less the first's."""

    first: str
    second: str
    seeds: list[int]
    """Those that both have, and that count; empty where single runs are compared."""
    bits_per_token: float
    f1: Tested
    exact_match: Tested
    flips: list[Flip]


class Compared(_Record):
    """What a comparison found."""

    questions: int
    """Asked of all runs."""
    passages: int
    protocol: str
    sides: list[Side]
    pairs: list[Pair]
    differences: list[str]
    """What is not the same in all runs, where the comparison was forced."""
    notes: list[str]


class _Member(NamedTuple):
    run: Run
    results: Mapping[str, Any]
    settings: dict[str, Any]
    answers: dict[str, Answer]  # to the row `bottleneck`, by question id

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    def scores(self, metric: str) -> Floats:
        return np.array([getattr(answer, metric) for answer in self.answers.values()], dtype=np.float64)


def compare_runs(paths: Sequence[Path], *, by_seed: bool = False, force: bool = False) -> Compared:
    """Compare the bottlenecks' answers of at least two runs, every pair of them.

    Args:
        paths: the runs' folders.
        by_seed: take runs that differ in their seed alone together; the intervals are then over seeds, too.
        force: compare runs of different data, protocols or models all the same, naming the differences.

    Raises:
        UsageError: a run is damaged or not evaluated, or they cannot be compared.
    """
    members = [_member(path) for path in paths]
    if len(members) < 2:
        raise UsageError("A comparison takes at least two runs.", "Name them: stage1 compare RUN RUN")
    differences = [text for other in members[1:] for text in _differences(members[0], other)]
    if differences and not force:
        more = f" (and {len(differences) - 1} more differences)" if len(differences) > 1 else ""
        raise UsageError(
            f"The runs do not pair: {differences[0]}{more}.",
            "Compare runs of the same data, protocol and model, or add --force: every difference is named.",
        )
    common = _common(members, same_needed=not force)
    notes = _notes(members, common)
    members = [each._replace(answers={id_: each.answers[id_] for id_ in common}) for each in members]
    groups = _groups(members) if by_seed else [[member] for member in members]
    if len(groups) < 2:
        raise UsageError(
            "These runs are seeds of one setting: there is nothing to compare them to.",
            "Leave out --by seed, or name runs of another setting.",
        )
    first = members[0]
    passages = [answer.passage for answer in first.answers.values()]
    statistics = Comparison(passages, first.settings["eval.resamples"], first.seed)
    sides = _sides(groups, statistics)
    return Compared(
        questions=len(common),
        passages=statistics.bootstrap.clusters,
        protocol=first.results["protocol"]["name"],
        sides=sides,
        pairs=_pairs(groups, sides, statistics),
        differences=differences,
        notes=notes,
    )


def with_prompts(
    compared: Compared, number: int, progress: Progress, *, trust_remote_code: bool = False
) -> Compared:
    """The same, the first `number` flips of each pair with the prompts as either side reconstructs them.

    Of several runs of a side, the first one's. No LLM is asked, see `stage1.inspection.reading`.

    Raises:
        UsageError: a run's model or data are not here.
    """
    from stage1.inspection.reading import Reader

    reader = Reader(progress, trust_remote_code=trust_remote_code)
    wanted: dict[str, set[str]] = {side.label: set() for side in compared.sides}
    for pair in compared.pairs:
        for label in (pair.first, pair.second):
            wanted[label] |= {flip.id for flip in pair.flips[:number]}
    read = {side.label: reader.read(Run(Path(side.runs[0])), wanted[side.label]) for side in compared.sides}

    def shown(pair: Pair) -> Pair:
        flips = [
            flip.model_copy(
                update={
                    "first_prompt": read[pair.first].get(flip.id),
                    "second_prompt": read[pair.second].get(flip.id),
                }
            )
            for flip in pair.flips
        ]
        return pair.model_copy(update={"flips": flips})

    return compared.model_copy(update={"pairs": [shown(pair) for pair in compared.pairs]})


def _member(path: Path) -> _Member:
    run, results = evaluated(path)
    answers = {answer.id: answer for answer in run.read_answers("bottleneck")}
    return _Member(run, results, settings_of(run.config), answers)


# -- what pairs --------------------------------------------------------------------------------------------


def _differences(first: _Member, other: _Member) -> list[str]:
    """What is not the same in two runs and has to be."""
    said = []
    ours, theirs = first.run.read_trained_on().content, other.run.read_trained_on().content
    if ours != theirs:
        said.append(f"other data ({_named(first, 'data')} and {_named(other, 'data')})")
    if first.results["model"]["sha256"] != other.results["model"]["sha256"]:
        said.append(f"another model ({_named(first, 'model')} and {_named(other, 'model')})")
    elif first.results["model"] != other.results["model"]:
        types = [member.results["model"]["dtype"] for member in (first, other)]
        said.append(f"the model in another type ({types[0]} and {types[1]})")
    rules, others = first.results["protocol"], other.results["protocol"]
    for key in (key for key in rules if key != "name" and rules[key] != others.get(key)):
        said.append(f"another {key} ({_rule(rules[key], others.get(key))})")
    return [f"{other.run.path} has {text}" for text in said]


def _named(member: _Member, key: str) -> str:
    return Path(str(member.settings[key])).name


def _rule(one: Any, other: Any) -> str:
    """Two values of a rule; of a section, the parts that differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        parts = [key for key in one if one[key] != other.get(key)]
        return ", ".join(f"{key} {one[key]!r} and {other.get(key)!r}" for key in parts)
    return f"{one!r} and {other!r}"


def _common(members: Sequence[_Member], *, same_needed: bool) -> list[str]:
    """The ids of the questions that all were asked, in the first run's order."""
    first, *others = members
    common = [id_ for id_ in first.answers if all(id_ in other.answers for other in others)]
    if not common:
        raise UsageError(
            "No question was asked of all of these runs.",
            "Compare runs that were evaluated on the same data.",
        )
    for id_ in common:
        if any(first.answers[id_].asked != other.answers[id_].asked for other in others) and same_needed:
            raise UsageError(
                f"The question {id_!r} is not the same in all runs.",
                "Evaluate them again on the same data: stage1 eval RUN",
            )
    if len({first.answers[id_].passage for id_ in common}) < 2:
        raise UsageError(
            f"The {len(common)} common questions are about one passage: nothing is known of how passages "
            "differ.",
            "Ask more: --limit on `stage1 eval`, or other data.",
        )
    return common


def _notes(members: Sequence[_Member], common: Sequence[str]) -> list[str]:
    notes = []
    most = max(len(member.answers) for member in members)
    if most > len(common):
        notes.append(f"Only {len(common)} of up to {most} questions were asked of all runs.")
    passages = len({members[0].answers[id_].passage for id_ in common})
    if passages < FEW_PASSAGES:
        notes.append(f"Only {passages} passages: little can be told apart.")
    for member in members:
        if (level := member.results["verdict"]["level"]) in ("protocol broken", "no ceiling"):
            notes.append(f"{member.run.path}: {level}. Its numbers say little.")
    return notes


# -- what differs ------------------------------------------------------------------------------------------


def _groups(members: Sequence[_Member]) -> list[list[_Member]]:
    """The runs that differ in their seed alone."""
    by: dict[str, list[_Member]] = {}
    for member in members:
        rest = {key: value for key, value in member.settings.items() if key != "seed"}
        by.setdefault(repr(sorted(rest.items())), []).append(member)
    for group in by.values():
        seeds = [member.seed for member in group]
        if len(set(seeds)) < len(seeds):
            raise UsageError(
                f"{group[0].run.path} and {group[1].run.path} are the same setting with the same seed.",
                "Name each run once.",
            )
    return list(by.values())


def _sides(groups: Sequence[Sequence[_Member]], statistics: Comparison) -> list[Side]:
    varied = {
        key
        for group in groups
        for key, value in group[0].settings.items()
        if any(other[0].settings.get(key) != value for other in groups)
    }
    if any(len(group) > 1 for group in groups):
        varied.discard("seed")
    return [
        Side(
            label=_label(number),
            runs=[str(member.run.path) for member in group],
            seeds=[member.seed for member in group],
            settings={key: group[0].settings[key] for key in sorted(varied) if key in group[0].settings},
            bits_per_token=float(np.mean([member.results["rate"]["bits_per_token"] for member in group])),
            **{metric: _mean(group, metric, statistics) for metric in METRICS},
        )
        for number, group in enumerate(groups)
    ]


def _label(number: int) -> str:
    """A to Z, then R27 and so on."""
    return chr(ord("A") + number) if number < 26 else f"R{number + 1}"


def _mean(group: Sequence[_Member], metric: str, statistics: Comparison) -> Mean:
    found = statistics.average([member.scores(metric) for member in group])
    return Mean(mean=found["f1"], ci95=found["f1_ci95"], spread=found["f1_spread"])


def _pairs(groups: Sequence[Sequence[_Member]], sides: Sequence[Side], statistics: Comparison) -> list[Pair]:
    numbers = list(combinations(range(len(groups)), 2))
    seeds = {pair: _seeds(groups[pair[0]], groups[pair[1]]) for pair in numbers}
    tested: dict[str, list[Tested]] = {}
    for metric in METRICS:
        found = [
            statistics.difference(_values(groups[one], groups[other], metric), LEVEL / len(numbers))
            for one, other in numbers
        ]
        corrected = holm([difference.p for difference in found])
        tested[metric] = [_tested(*both) for both in zip(found, corrected, strict=True)]
    return [
        Pair(
            first=sides[one].label,
            second=sides[other].label,
            seeds=seeds[one, other],
            bits_per_token=sides[other].bits_per_token - sides[one].bits_per_token,
            **{metric: tested[metric][place] for metric in METRICS},
            flips=_flips(groups[one], groups[other]),
        )
        for place, (one, other) in enumerate(numbers)
    ]


def _seeds(first: Sequence[_Member], second: Sequence[_Member]) -> list[int]:
    """The seeds that are paired; none where two single runs are."""
    if len(first) == len(second) == 1:
        return []
    common = sorted({member.seed for member in first} & {member.seed for member in second})
    if not common:
        raise UsageError(
            f"{first[0].run.path} and {second[0].run.path} have no seed in common.",
            "Name runs of the same seeds, or leave out --by seed.",
        )
    return common


def _values(first: Sequence[_Member], second: Sequence[_Member], metric: str) -> Floats:
    """The differences second − first, [S, n]."""
    if len(first) == len(second) == 1:  # two runs are paired whatever their seeds
        return (second[0].scores(metric) - first[0].scores(metric))[None]
    ours, theirs = ({member.seed: member.scores(metric) for member in group} for group in (second, first))
    return np.stack(list(paired(ours, theirs).values()))


def _tested(found: Difference, corrected: float) -> Tested:
    return Tested(
        difference=found.mean,
        ci95=found.ci95,
        bootstrap_ci95=found.bootstrap_ci95,
        p=found.p,
        p_holm=corrected,
        detectable=found.detectable,
        found=corrected < LEVEL,
    )


def _flips(first: Sequence[_Member], second: Sequence[_Member]) -> list[Flip]:
    """The questions that flipped, those first whose F1 moved most."""
    found = []
    for id_ in first[0].answers:
        ours, theirs = ([member.answers[id_] for member in group] for group in (first, second))
        before, after = (sum(a.right for a in answers) > len(answers) / 2 for answers in (ours, theirs))
        if before != after:
            flip = Flip(
                id=id_,
                question=ours[0].question,
                gold=ours[0].gold,
                first=[answer.prediction for answer in ours],
                second=[answer.prediction for answer in theirs],
                gained=after,
            )
            moved = np.mean([a.f1 for a in theirs]) - np.mean([a.f1 for a in ours])
            found.append((-abs(float(moved)), flip))
    return [flip for _, flip in sorted(found, key=lambda entry: entry[0])]

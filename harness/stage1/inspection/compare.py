"""Finished runs against each other, paired on the questions that all of them were asked."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

from stage1.config import settings_of
from stage1.errors import UsageError
from stage1.evaluation.statistics import LEVEL, Comparison, Floats, holm
from stage1.evaluation.summary import METRICS
from stage1.evaluation.verdict import FEW_PASSAGES
from stage1.inspection.questions import evaluated
from stage1.inspection.reading import read_prompts
from stage1.progress import Progress
from stage1.runs.answers import Answer
from stage1.runs.results import Interval
from stage1.runs.run import Run


class Mean(BaseModel, frozen=True):
    """A metric over the common questions, 0 to 100; the interval is over passages."""

    mean: float
    ci95: Interval
    spread: float | None
    """Standard deviation of the runs' means; None for a single run."""


class Side(BaseModel, frozen=True):
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


class Tested(BaseModel, frozen=True):
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


class Flip(BaseModel, frozen=True):
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


class Pair(BaseModel, frozen=True):
    """Two sides; differences are the second's less the first's."""

    first: str
    second: str
    seeds: list[int]
    """Those that both have, and that count; empty where single runs are compared."""
    bits_per_token: float
    f1: Tested
    exact_match: Tested
    flips: list[Flip]


class Compared(BaseModel, frozen=True):
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

    @classmethod
    def of(cls, path: Path) -> "_Member":
        run, results = evaluated(path)
        answers = {answer.id: answer for answer in run.read_answers("bottleneck")}
        return cls(run, results, settings_of(run.config), answers)

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    def scores(self, metric: str) -> Floats:
        return np.array([getattr(answer, metric) for answer in self.answers.values()], dtype=np.float64)


_Group = Sequence[_Member]
"""A side: one run, or the seeds of one setting."""


def compare_runs(paths: Sequence[Path], *, by_seed: bool = False, force: bool = False) -> Compared:
    """Compare the bottlenecks' answers of at least two runs, every pair of them.

    Args:
        paths: the runs' folders.
        by_seed: take runs that differ in their seed alone together; the intervals are then over seeds, too.
        force: compare runs of different data, protocols or models all the same, naming the differences.

    Raises:
        UsageError: a run is damaged or not evaluated, or they cannot be compared.
    """
    members = [_Member.of(path) for path in paths]
    if len(members) < 2:
        raise UsageError("A comparison takes at least two runs.", "Name them: stage1 compare RUN RUN")
    first = members[0]
    differences = [text for other in members[1:] for text in _differences(first, other)]
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
    passages = [first.answers[id_].passage for id_ in common]
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
    wanted: dict[str, set[str]] = {side.label: set() for side in compared.sides}
    for pair in compared.pairs:
        for label in (pair.first, pair.second):
            wanted[label] |= {flip.id for flip in pair.flips[:number]}
    asked = [(Run(Path(side.runs[0])), wanted[side.label]) for side in compared.sides]
    read = dict(zip(wanted, read_prompts(asked, progress, trust_remote_code=trust_remote_code), strict=True))
    pairs = []
    for pair in compared.pairs:
        first, second = read[pair.first], read[pair.second]
        flips = [
            flip.model_copy(update={"first_prompt": first.get(flip.id), "second_prompt": second.get(flip.id)})
            for flip in pair.flips
        ]
        pairs.append(pair.model_copy(update={"flips": flips}))
    return compared.model_copy(update={"pairs": pairs})


# -- what pairs --------------------------------------------------------------------------------------------


def _differences(first: _Member, other: _Member) -> list[str]:
    """What is not the same in two runs and has to be."""

    def named(key: str) -> str:
        return " and ".join(Path(str(member.settings[key])).name for member in (first, other))

    said = []
    if first.run.read_trained_on().content != other.run.read_trained_on().content:
        said.append(f"other data ({named('data')})")
    ours, theirs = first.results["model"], other.results["model"]
    if ours["sha256"] != theirs["sha256"]:
        said.append(f"another model ({named('model')})")
    elif ours != theirs:
        said.append(f"the model in another type ({ours['dtype']} and {theirs['dtype']})")
    rules, others = first.results["protocol"], other.results["protocol"]
    for key in (key for key in rules if key != "name" and rules[key] != others.get(key)):
        said.append(f"another {key} ({_rule(rules[key], others.get(key))})")
    return [f"{other.run.path} has {text}" for text in said]


def _rule(one: Any, other: Any) -> str:
    """Two values of a rule; of a section, the parts that differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        parts = [key for key in one if one[key] != other.get(key)]
        return ", ".join(f"{key} {one[key]!r} and {other.get(key)!r}" for key in parts)
    return f"{one!r} and {other!r}"


def _common(members: _Group, *, same_needed: bool) -> list[str]:
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


def _notes(members: _Group, common: Sequence[str]) -> list[str]:
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


def _groups(members: _Group) -> list[list[_Member]]:
    """The runs that differ in their seed alone."""
    by: dict[str, list[_Member]] = {}
    for member in members:
        rest = {key: value for key, value in member.settings.items() if key != "seed"}
        group = by.setdefault(repr(sorted(rest.items())), [])
        if twin := next((other for other in group if other.seed == member.seed), None):
            raise UsageError(
                f"{twin.run.path} and {member.run.path} are the same setting with the same seed.",
                "Name each run once.",
            )
        group.append(member)
    return list(by.values())


def _sides(groups: Sequence[_Group], statistics: Comparison) -> list[Side]:
    settings = [group[0].settings for group in groups]
    varied = {
        key for ours in settings for key in ours if any(other.get(key) != ours[key] for other in settings)
    }
    if any(len(group) > 1 for group in groups):
        varied.discard("seed")
    return [
        Side(
            label=chr(ord("A") + number) if number < 26 else f"R{number + 1}",
            runs=[str(member.run.path) for member in group],
            seeds=[member.seed for member in group],
            settings={key: settings[number][key] for key in sorted(varied & settings[number].keys())},
            bits_per_token=float(np.mean([member.results["rate"]["bits_per_token"] for member in group])),
            **{metric: _mean(group, metric, statistics) for metric in METRICS},
        )
        for number, group in enumerate(groups)
    ]


def _mean(group: _Group, metric: str, statistics: Comparison) -> Mean:
    found = statistics.average([member.scores(metric) for member in group])
    return Mean(mean=found["f1"], ci95=found["f1_ci95"], spread=found["f1_spread"])


def _pairs(groups: Sequence[_Group], sides: Sequence[Side], statistics: Comparison) -> list[Pair]:
    paired = [_paired(*both) for both in combinations(groups, 2)]
    tested: dict[str, list[Tested]] = {}
    for metric in METRICS:
        found = [
            statistics.difference(
                np.stack([theirs.scores(metric) - ours.scores(metric) for ours, theirs in runs]),
                LEVEL / len(paired),
            )
            for runs in paired
        ]
        tested[metric] = [
            Tested(**each._asdict(), difference=each.mean, p_holm=p, found=p < LEVEL)
            for each, p in zip(found, holm([each.p for each in found]), strict=True)
        ]
    return [
        Pair(
            first=sides[one].label,
            second=sides[other].label,
            seeds=[] if len(groups[one]) == len(groups[other]) == 1 else [a.seed for a, _ in paired[place]],
            bits_per_token=sides[other].bits_per_token - sides[one].bits_per_token,
            **{metric: tested[metric][place] for metric in METRICS},
            flips=_flips(groups[one], groups[other]),
        )
        for place, (one, other) in enumerate(combinations(range(len(groups)), 2))
    ]


def _paired(first: _Group, second: _Group) -> list[tuple[_Member, _Member]]:
    """The runs of two sides with the same seed; two single runs are paired whatever their seeds."""
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    by_seed = {member.seed: member for member in second}
    common = [(ours, by_seed[ours.seed]) for ours in first if ours.seed in by_seed]
    if not common:
        raise UsageError(
            f"{first[0].run.path} and {second[0].run.path} have no seed in common.",
            "Name runs of the same seeds, or leave out --by seed.",
        )
    return sorted(common, key=lambda pair: pair[0].seed)


def _flips(first: _Group, second: _Group) -> list[Flip]:
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

"""Causes in the training: why it ended below what no training at all reaches, and what it was chosen by."""

from collections.abc import Iterator
from typing import Any

from stage1.diagnosis.facts import NOTABLE, Facts, Found

DROWNING = 0.8
"""Share of the objective from which one term drowns the others."""
WORSE = 1.05
"""Ratio of a value's end to its beginning from which it got worse."""


def judge_training(facts: Facts, explains: float) -> Found:
    """The one cause for which training did harm: what was asked for before what came of it."""
    evidence = [
        f"without training F1 is {facts.untrained:.1f}, with it {facts.ours:.1f}",
        *_unimproved(facts),
        *_collapsed(facts),
        *stretched(facts),
        *map(_fall, facts.diverged[:1]),
    ]
    if facts.objective["teacher_forced"]:
        return _teacher_forced(facts, explains, evidence)
    if _drowned(facts):
        return _drowning(facts, explains, evidence)
    return Found("collapse" if _collapsed(facts) else "harmed", explains, evidence)


def _teacher_forced(facts: Facts, explains: float, evidence: list[str]) -> Found:
    """Whatever its share of the objective: weighing it otherwise would leave it teacher-forced."""
    names, terms = facts.objective["teacher_forced"], facts.objective["terms"] or {}
    accuracy = facts.objective["teacher_forced_accuracy"]
    told = [f"{', '.join(names)} saw the gold answer's embeddings in training; evaluation has none"]
    told += [_course(facts, name) for name in names if name in terms]
    if accuracy:
        told.append(
            f"{100 * accuracy['given_the_answer']:.0f} % of the answer's tokens are right when the answer so "
            f"far is given, {100 * accuracy['alone']:.0f} % of the first ones alone"
        )
    # Nothing was measured that the objective's own fault explains; that it does not fit stays true.
    least = "warning" if facts.f1["raw"] - facts.ours >= NOTABLE else "note"
    return Found("teacher_forced", explains, [*told, *evidence], least=least)


def _ends(facts: Facts, name: str) -> tuple[float, float]:
    """A term's value before and after training, on the selection split where it was measured there."""
    measured = (facts.objective["on_selection"] or {}).get(name)
    if measured:
        return measured["first"], measured["last"]
    term = facts.objective["terms"][name]
    return term["first_value"], term["last_value"]


def _course(facts: Facts, name: str) -> str:
    first, last = _ends(facts, name)
    share = facts.objective["terms"][name]["mean_share"]
    return f"`{name}`, {100 * share:.0f} % of the objective, went from {first:.3g} to {last:.3g}"


def _drowned(facts: Facts) -> bool:
    """One term is nearly all of the objective, and reconstruction or another term got worse meanwhile."""
    term, terms = facts.objective["dominating"], facts.objective["terms"] or {}
    if term is None or term["share"] < DROWNING:
        return False
    ends = [_ends(facts, name) for name in terms if name != term["term"]]
    if facts.objective["recon_first"] is not None:
        ends.append((facts.objective["recon_first"], facts.objective["recon_last"]))
    return any(last > WORSE * first for first, last in ends)


def _drowning(facts: Facts, explains: float, evidence: list[str]) -> Found:
    terms = facts.objective["terms"]
    first, last = facts.objective["recon_first"], facts.objective["recon_last"]
    told = [_course(facts, name) for name in terms]
    if first is not None:
        told.append(f"recon on the selection split went from {first:.4f} to {last:.4f}")
    losses = " ".join(f"--loss {name}=auto" for name in terms)
    words = {"term": facts.objective["dominating"]["term"], "losses": losses}
    return Found("drowning", explains, [*told, *evidence], words)


def _unimproved(facts: Facts) -> list[str]:
    kept = facts.objective["kept_step"] == 0
    return ["the checkpoint kept is the start: nothing after it measured better"] * kept


def _collapsed(facts: Facts) -> list[str]:
    """That nearly the same is said whatever the token; empty where it is not."""
    variance = facts.statistics.get("variance_ratio")
    top = facts.tokens.get("top_nearest")
    if top is None or variance is None or (variance > 0.1 and top["share"] < 0.5):
        return []
    return [
        f"the reconstructed vectors have {100 * variance:.1f} % of the originals' variance",
        f"{100 * top['share']:.0f} % of them are nearest to one token, {top['token']!r}",
    ]


def stretched(facts: Facts) -> list[str]:
    """That reconstructed vectors are far too long or too short; empty where they are not."""
    return [
        f"reconstructed vectors are typically {facts.norm:.3g} times as long as the originals"
    ] * facts.norms_off


# -- reconstruction as a proxy -----------------------------------------------------------------------------


def _fall(pair: dict[str, Any]) -> str:
    return (
        f"from step {pair['from']} to {pair['to']}: recon {pair['recon_from']:.4f} → "
        f"{pair['recon_to']:.4f}, F1 {pair['f1_from']:.1f} → {pair['f1_to']:.1f}"
    )


def diverged_goal(facts: Facts) -> float:
    """F1 if the fall had not been; at most that of the raw embeddings."""
    fall = max((pair["f1_from"] - pair["f1_to"] for pair in facts.diverged), default=0.0)
    return min(facts.f1["raw"], facts.ours + float(fall))


def judge_divergence(facts: Facts, explains: float) -> Found:
    """Reconstruction improved while F1 fell."""
    return Found("diverged", explains, [_fall(facts.diverged[0])])


# -- what explains no points, and is to be known -----------------------------------------------------------


def known(facts: Facts) -> Iterator[Found]:
    """Passages in two splits, and what is said of a training even where it did no harm that was measured."""
    for cause in ("selection_on_test", "training_on_test"):
        if shared := facts.objective[cause]:
            yield Found(cause, 0.0, [f"{shared} passages are in both: F1 is flattered"])
    if facts.objective["teacher_forced"]:
        yield _teacher_forced(facts, 0.0, [])
    ended_as_it_began = _unimproved(facts)
    if facts.objective["terms"] is not None and ended_as_it_began:
        first, last, lr = (facts.objective[name] for name in ("score_first", "score_last", "lr"))
        told = f"the selection error went from {first:.4g} to {last:.4g}"
        yield Found("unimproved", 0.0, [*ended_as_it_began, told], {"lr": lr / 10})

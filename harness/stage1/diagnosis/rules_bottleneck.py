"""Causes in the bottleneck: compressor, adapter, and the training of both.

The way up from the bottleneck's F1 to the raw embeddings' is cut into rungs, the most specific cause first.
A rung's goal is the F1 that its counterfactual reached; what it explains is the rise from the goals of the
rungs listed before it. So no point of F1 is claimed twice, and a finding that is only a consequence of
another (a collapse under a drowned loss, lengths that training ruined) is that one's evidence.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from stage1.diagnosis.compressor import FOREIGN
from stage1.diagnosis.facts import NOTABLE, Facts, Finding, make, points
from stage1.diagnosis.rules_training import diverged_goal, judge_divergence, judge_training

LOSSY = 0.15
"""Share of the raw embeddings' F1 that may be missing where reconstruction suffices."""


class Rung(NamedTuple):
    """A step up."""

    goal: Callable[[Facts], float]  # F1 where the cause is taken away
    judge: Callable[[Facts, str, float], Finding | None]  # facts, run, points explained; None: no such cause


def ladder(facts: Facts, run: str) -> Iterator[Finding]:
    """What stands between the bottleneck and the raw embeddings."""
    reached = facts.ours
    for rung in _rungs(facts):
        goal = rung.goal(facts)
        if goal - reached < NOTABLE:
            continue
        if (finding := rung.judge(facts, run, goal - reached)) is not None:
            yield finding
            reached = goal


def _rungs(facts: Facts) -> list[Rung]:
    norms = Rung(_true_norms, _judge_norms)
    training = Rung(lambda facts: facts.untrained, judge_training)
    # Where right norms alone bring back what no training at all would, they are the whole fault; so they
    # are where training could not see them. Otherwise they went wrong with everything else.
    first = facts.blind or _true_norms(facts) >= facts.untrained - NOTABLE
    return [
        Rung(lambda facts: facts.reach("refit", "closed_form"), _judge_table),
        *((norms, training) if first else (training, norms)),
        Rung(lambda facts: max(facts.untrained, facts.reach("refit")), _judge_fit),
        Rung(diverged_goal, judge_divergence),
        Rung(_in_form, _judge_form),
        Rung(lambda facts: facts.reach("raw"), _judge_loss),
    ]


def _true_norms(facts: Facts) -> float:
    return facts.reach("true_norms")


def _judge_table(facts: Facts, run: str, explains: float) -> Finding | None:
    """Bottleneck and table do not belong together."""
    apart = facts.compressor["mean_distance"]
    if apart is None or apart <= FOREIGN:
        return None
    return make(
        "wrong_table",
        explains,
        facts,
        "The bottleneck was fitted on another embedding table, or on other text",
        [
            f"its mean embedding is {apart:.2f} total variances away from that of this table's tokens",
            f"fitted on these, without training: F1 {points(facts.reach('refit', 'closed_form'))} "
            f"instead of {points(facts.ours)}",
        ],
        "Fit compressor and adapter on the table of the model that answers, and on text like the questions'.",
        None,
    )


def _judge_norms(facts: Facts, run: str, explains: float) -> Finding | None:
    """Directions are right, lengths are not."""
    if not facts.norms_off:
        return None
    evidence = [
        f"reconstructed vectors are typically {facts.norm:.3g} times as long as the originals",
        f"with the originals' norms and nothing else changed: F1 {points(facts.f1['true_norms'])} instead of "
        f"{points(facts.ours)}",
    ]
    if facts.blind:
        return make(
            "norm_leak",
            explains,
            facts,
            "The objective cannot see magnitude: it leaks the original's norm, or ignores it",
            [*evidence, "halving or doubling every reconstructed vector leaves the training loss unchanged"],
            "Pay for the norm or do without it: magnitude sent (16 bits a vector) or vocab, or add `recon`.",
            f"stage1 eval {run} --magnitude vocab",
        )
    return make(
        "magnitude",
        explains,
        facts,
        "Reconstructed vectors have the wrong magnitude",
        evidence,
        "Rescale to the vocabulary's norm, or send the norms and pay for them.",
        f"stage1 eval {run} --magnitude vocab",
    )


def _judge_fit(facts: Facts, run: str, explains: float) -> Finding | None:
    """The same compressor does better when it is fitted on plenty."""
    estimate, unseen = facts.compressor["estimate"], facts.compressor["unseen"]
    return make(
        "few_prompts",
        explains,
        facts,
        "The compressor was fitted on too few prompts",
        [
            f"{estimate['prompts']} prompts, {estimate['distinct_tokens']} distinct tokens, stand behind "
            f"{estimate['code_dim']} dimensions ({estimate['tokens_per_dimension']:.1f} per dimension)",
            f"{100 * unseen['share_of_positions']:.1f} % of the test positions hold a token unseen there",
            f"fitted on plenty, without training: F1 {points(facts.f1['refit'])} instead of "
            f"{points(max(facts.ours, facts.untrained))}",
        ],
        "Fit on more prompts: counting tokens costs next to nothing.",
        "stage1 train --set data.train=10000",
    )


def _in_form(facts: Facts) -> float:
    """F1 if answers said no more beside the gold text than the bare model's do."""
    ours, text = (facts.measured["generation"][row]["points_in_form"] for row in ("ours", "text"))
    return facts.ours + max(0.0, float(ours - text))


def _judge_form(facts: Facts, run: str, explains: float) -> Finding:
    share = facts.measured["generation"]["ours"]["contains_gold_but_wrong"]
    return make(
        "format",
        explains,
        facts,
        "Answers contain the gold text but say more",
        [f"{100 * share:.0f} % of the answers contain a gold answer with F1 below 50"],
        "The gap is format, not knowledge: look at the examples in diagnosis.json.",
        None,
    )


def _judge_loss(facts: Facts, run: str, explains: float) -> Finding | None:
    """What no variant brings back went missing in the compressor."""
    if explains < LOSSY * facts.f1["raw"]:
        return None
    lost = facts.compressor["lost_sensitivity"]
    recovered = facts.tokens.get("recovery_euclidean")
    inverse = facts.f1.get("inverse")
    between = "" if inverse is None else f"{points(inverse)} with compressor and inverse, "
    evidence = [f"F1 {points(facts.f1['raw'])} raw, {between}{points(facts.ours)} with the adapter"]
    if lost is not None:
        evidence.append(f"{100 * min(lost, 1):.0f} % of the variance that the LLM is sensitive to is lost")
    if recovered is not None:
        evidence.append(
            f"{100 * recovered:.1f} % of the reconstructed vectors are nearest to their own token"
        )
    return make(
        "too_lossy",
        explains,
        facts,
        "The code is too small for this adapter and objective",
        evidence,
        "Train with a loss that reads the LLM, or send more.",
        f"stage1 train --recipe phase2 --init {run}",
    )

"""Causes in the bottleneck: compressor, adapter, and the training of both.

The way up from the bottleneck's F1 to the raw embeddings' is cut into rungs, the most specific cause first.
A rung's goal is the F1 that its counterfactual reached; what it explains is the rise from the goals of the
rungs listed before it. So no point of F1 is claimed twice, and a finding that is only a consequence of
another (a collapse under a drowned loss, lengths that training ruined) is that one's evidence.
"""

from collections.abc import Callable, Iterator

from stage1.diagnosis.compressor import FOREIGN
from stage1.diagnosis.facts import NOTABLE, Facts, Found
from stage1.diagnosis.rules_training import diverged_goal, judge_divergence, judge_training, stretched

LOSSY = 0.15
"""Share of the raw embeddings' F1 that may be missing where reconstruction suffices."""

Judge = Callable[[Facts, float], Found | None]
"""From the facts and the points of F1 that it explains to the cause; None: it is not that one."""


def ladder(facts: Facts) -> Iterator[Found]:
    """What stands between the bottleneck and the raw embeddings."""
    reached = facts.ours
    for goal, judge in _rungs(facts):
        if goal - reached < NOTABLE:
            continue
        if (found := judge(facts, goal - reached)) is not None:
            yield found
            reached = goal


def _rungs(facts: Facts) -> list[tuple[float, Judge]]:
    """F1 where a cause is taken away, and who judges whether it is that cause."""
    norms: tuple[float, Judge] = (facts.reach("true_norms"), _judge_norms)
    training: tuple[float, Judge] = (facts.untrained, judge_training)
    # Where right norms alone bring back what no training at all would, they are the whole fault; so they
    # are where training could not see them. Otherwise they went wrong with everything else.
    first = facts.blind or facts.reach("true_norms") >= facts.untrained - NOTABLE
    return [
        (facts.reach("refit", "closed_form"), _judge_table),
        *((norms, training) if first else (training, norms)),
        (max(facts.untrained, facts.reach("refit")), _judge_fit),
        (diverged_goal(facts), judge_divergence),
        (_in_form(facts), _judge_form),
        (facts.reach("raw"), _judge_loss),
    ]


def _judge_table(facts: Facts, explains: float) -> Found | None:
    """Bottleneck and table do not belong together."""
    apart = facts.compressor["mean_distance"]
    if apart is None or apart <= FOREIGN:
        return None
    evidence = [
        f"its mean embedding is {apart:.2f} total variances away from that of this table's tokens",
        f"fitted on these, without training: F1 {facts.reach('refit', 'closed_form'):.1f} "
        f"instead of {facts.ours:.1f}",
    ]
    return Found("wrong_table", explains, evidence)


def _judge_norms(facts: Facts, explains: float) -> Found | None:
    """Directions are right, lengths are not."""
    if not facts.norms_off:
        return None
    evidence = [
        *stretched(facts),
        f"with the originals' norms and nothing else changed: F1 {facts.f1['true_norms']:.1f} instead of "
        f"{facts.ours:.1f}",
    ]
    if not facts.blind:
        return Found("magnitude", explains, evidence)
    evidence.append("halving or doubling every reconstructed vector leaves the training loss unchanged")
    return Found("norm_leak", explains, evidence)


def _judge_fit(facts: Facts, explains: float) -> Found:
    """The same compressor does better when it is fitted on plenty."""
    estimate, unseen = facts.compressor["estimate"], facts.compressor["unseen"]
    evidence = [
        f"{estimate['prompts']} prompts, {estimate['distinct_tokens']} distinct tokens, stand behind "
        f"{estimate['code_dim']} dimensions ({estimate['tokens_per_dimension']:.1f} per dimension)",
        f"{100 * unseen['share_of_positions']:.1f} % of the test positions hold a token unseen there",
        f"fitted on plenty, without training: F1 {facts.f1['refit']:.1f} instead of "
        f"{max(facts.ours, facts.untrained):.1f}",
    ]
    return Found("few_prompts", explains, evidence)


def _in_form(facts: Facts) -> float:
    """F1 if answers said no more beside the gold text than the bare model's do."""
    ours, text = (facts.measured["generation"][row]["points_in_form"] for row in ("ours", "text"))
    return facts.ours + max(0.0, float(ours - text))


def _judge_form(facts: Facts, explains: float) -> Found:
    share = facts.measured["generation"]["ours"]["contains_gold_but_wrong"]
    told = f"{100 * share:.0f} % of the answers contain a gold answer with F1 below 50"
    return Found("format", explains, [told], {"whose": "Answers"})


def _judge_loss(facts: Facts, explains: float) -> Found | None:
    """What no variant brings back went missing in the compressor."""
    if explains < LOSSY * facts.f1["raw"]:
        return None
    lost = facts.compressor["lost_sensitivity"]
    recovered = facts.tokens.get("recovery_euclidean")
    inverse = facts.f1.get("inverse")
    between = "" if inverse is None else f"{inverse:.1f} with compressor and inverse, "
    evidence = [f"F1 {facts.f1['raw']:.1f} raw, {between}{facts.ours:.1f} with the adapter"]
    if lost is not None:
        evidence.append(f"{100 * min(lost, 1):.0f} % of the variance that the LLM is sensitive to is lost")
    if recovered is not None:
        evidence.append(
            f"{100 * recovered:.1f} % of the reconstructed vectors are nearest to their own token"
        )
    return Found("too_lossy", explains, evidence)

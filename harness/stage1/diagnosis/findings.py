"""From measurements to findings: what explains the missing F1, by how much, and what to try next.

Each rule reads what the probes measured and names one cause. `explains` is in points of F1: what a variant
without the fault brings back, beyond what more specific causes explain (`rules_bottleneck`).

Faults of the protocol come first, however little they explain: as long as questions are put or answers cut
in another way than the model expects, F1 measures that too, and every number after it, counterfactuals
included, was taken under the fault. Mend them, then measure again. They are warnings at least.
"""

from collections.abc import Mapping
from typing import Any

from stage1.diagnosis import rules_bottleneck, rules_protocol, rules_training
from stage1.diagnosis.facts import Facts, Finding

RULES = (*rules_protocol.RULES, rules_bottleneck.ladder, *rules_training.RULES)

PROTOCOL = ("raw_differs", "cut", "no_bos", "no_stop", "no_ceiling", "trailing_space")
"""Causes that come before all others; of those that explain equally much, the first here is first."""

CAUSES = (
    # Of the others that explain equally much, the first of these is the one to mend first.
    *PROTOCOL,
    "norm_leak",
    "magnitude",
    "wrong_table",
    "few_prompts",
    "drowning",
    "teacher_forced",
    "collapse",
    "diverged",
    "harmed",
    "unimproved",
    "format",
    "too_lossy",
    "training_on_test",
    "selection_on_test",
    "unstopped",
    "truncated",
    "chat_template",
)

CONSEQUENCES = {
    "no_ceiling": ("raw_differs", "cut", "no_bos", "no_stop"),
    "truncated": ("cut",),
    "unstopped": ("cut", "no_ceiling"),
    "format": ("no_stop",),
    "unimproved": ("drowning", "collapse", "harmed"),
}
"""What follows from other findings and is left out beside any of them."""


def findings(measured: Mapping[str, Any], run: str) -> list[Finding]:
    """What is wrong: the protocol, then the most F1 first; empty for a clean bill.

    Args:
        measured: the probes' results by name.
        run: how commands name the run.
    """
    facts = Facts(measured)
    found: dict[str, Finding] = {}
    for rule in RULES:
        for finding in rule(facts, run):
            found.setdefault(finding.cause, finding)
    listed = [f for cause, f in found.items() if not found.keys() & CONSEQUENCES.get(cause, ())]
    return sorted(listed, key=_place)


def _place(finding: Finding) -> tuple[bool, float, int]:
    return finding.cause not in PROTOCOL, -round(finding.explains), CAUSES.index(finding.cause)

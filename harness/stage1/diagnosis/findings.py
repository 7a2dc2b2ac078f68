"""From measurements to findings: what explains the missing F1, by how much, and what to try next.

Each rule reads what the probes measured and names causes with their evidence. `explains` is in points of F1:
what a variant without the fault brings back, beyond what more specific causes explain (`rules_bottleneck`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from stage1.diagnosis import rules_bottleneck, rules_protocol, rules_training
from stage1.diagnosis.facts import NOTABLE, Facts, Found

RULES = (
    rules_protocol.answers,
    rules_protocol.prompts,
    rules_bottleneck.ladder,
    rules_training.known,
)


class Finding(NamedTuple):
    """One cause."""

    cause: str  # a slug: `magnitude`, `no_bos`, …
    severity: str  # "critical": explains a third of the ceiling or more; "warning"; "note"
    explains: float  # points of F1, at least 0
    title: str
    evidence: list[str]
    remedy: str
    command: str | None  # the next thing to type


class Cause(NamedTuple):
    """What is said of a cause; {run} is how commands name the run, other gaps are filled by its rule."""

    title: str
    remedy: str
    command: str | None = None
    least: str = "note"  # its severity, where it explains next to nothing


PROTOCOL = {
    "raw_differs": Cause(
        "Embeddings do not do what token ids do",
        "Nothing else counts until they agree: check dtype, position ids and attention mask.",
    ),
    "cut": Cause(
        "Truncation took the question away",
        "Cut the far end of the context, never the question: raise the length limit.",
    ),
    "no_bos": Cause(
        "Prompts do not begin with BOS",
        "Use a tokenizer that adds BOS (its post-processor or add_bos_token), and train again.",
    ),
    "no_stop": Cause(
        "Answers run on after their line has ended",
        "Stop generating at the newline, and score the first line only.",
    ),
    "no_ceiling": Cause(
        "The bare model does not answer these questions",
        "Ask questions that the model can answer, or use a model that answers these.",
    ),
    "trailing_space": Cause("Prompts end in a space", "End the prompt in `Answer:`."),
}
"""Faults of the protocol come first, however little they explain, and are warnings at least: as long as
questions are put or answers cut in another way than the model expects, F1 measures that too, and every number
after it, counterfactuals included, was taken under the fault. Mend them, then measure again."""

CAUSES = PROTOCOL | {
    "norm_leak": Cause(
        "The objective cannot see magnitude: it leaks the original's norm, or ignores it",
        "Pay for the norm or do without it: magnitude sent (16 bits a vector) or vocab, or add `recon`.",
        "stage1 eval {run} --magnitude vocab",
    ),
    "magnitude": Cause(
        "Reconstructed vectors have the wrong magnitude",
        "Rescale to the vocabulary's norm, or send the norms and pay for them.",
        "stage1 eval {run} --magnitude vocab",
    ),
    "wrong_table": Cause(
        "The bottleneck was fitted on another embedding table, or on other text",
        "Fit compressor and adapter on the table of the model that answers, and on text like the questions'.",
    ),
    "few_prompts": Cause(
        "The compressor was fitted on too few prompts",
        "Fit on more prompts: counting tokens costs next to nothing.",
        "stage1 train --set data.train=10000",
    ),
    "drowning": Cause(
        "One loss term, {term}, drowns the others",
        "Weigh the terms by `auto`, so that all pull alike.",
        "stage1 train {losses}",
    ),
    "teacher_forced": Cause(
        "Training was teacher-forced, evaluation is not",
        "Train on the prompt alone.",
        "stage1 train --recipe phase2",
    ),
    "collapse": Cause(
        "The adapter collapsed: it says nearly the same whatever the token",
        "Train again from the closed-form start with a lower learning rate.",
        "stage1 train --set train.lr=0.001",
    ),
    "diverged": Cause(
        "Reconstruction improved while F1 fell",
        "Reconstruction is no proxy here: choose by a loss that reads the LLM.",
        "stage1 train --recipe phase2",
    ),
    "harmed": Cause(
        "The trained adapter is worse than no training",
        "Train again from the closed-form start with a lower learning rate or another objective.",
        "stage1 train --set train.lr=0.001",
    ),
    "unimproved": Cause(
        "No training step was better than the start",
        "Train again with a lower learning rate.",
        "stage1 train --set train.lr={lr:g}",
        least="warning",
    ),
    "format": Cause(
        "{whose} contain the gold text but say more",
        "The gap is format, not knowledge: look at the examples in diagnosis.json.",
    ),
    "too_lossy": Cause(
        "The code is too small for this adapter and objective",
        "Train with a loss that reads the LLM, or send more.",
        "stage1 train --recipe phase2 --init {run}",
    ),
    "training_on_test": Cause(
        "The training split shares passages with the test split",
        "Use splits without a passage in common.",
        least="warning",
    ),
    "selection_on_test": Cause(
        "The selection split shares passages with the test split",
        "Use splits without a passage in common.",
        least="warning",
    ),
    "unstopped": Cause(
        "The bare model does not end its answers",
        "The prompt's form does not suit this model: an instruct model may need its chat template.",
    ),
    "truncated": Cause(
        "Contexts were truncated",
        "Raise data.max_prompt_tokens if the model's context allows it.",
    ),
    "chat_template": Cause(
        "An instruct model is asked without its chat template",
        "Compare with the base model, or judge by the text row: it is the ceiling of this protocol.",
    ),
}
"""Of those that explain equally much, the first of these is the one to mend first."""

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
        for claim in rule(facts):
            found.setdefault(claim.cause, _worded(claim, facts, run))
    listed = [f for cause, f in found.items() if not found.keys() & CONSEQUENCES.get(cause, ())]
    rank = {cause: place for place, cause in enumerate(CAUSES)}
    return sorted(listed, key=lambda f: (f.cause not in PROTOCOL, -round(f.explains), rank[f.cause]))


def _worded(found: Found, facts: Facts, run: str) -> Finding:
    cause, third = CAUSES[found.cause], max(facts.text, 1.0) / 3
    notable = found.explains >= NOTABLE or found.cause in PROTOCOL
    least = "warning" if notable else found.least or cause.least
    severity = "critical" if found.explains >= third else least
    words = {"run": run, **found.words}
    title, command = cause.title.format(**words), cause.command and cause.command.format(**words)
    return Finding(
        found.cause, severity, max(0.0, found.explains), title, found.evidence, cause.remedy, command
    )

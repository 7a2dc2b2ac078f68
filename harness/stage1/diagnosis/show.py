"""A diagnosis for people: what is wrong, the evidence, the stages, and the prompts as they are read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from stage1.text import visible

LONGEST = 60
"""Characters of a text from a data set that are shown."""
TOKENS = 150
"""Tokens of a prompt that are shown."""


def excerpt(text: str, longest: int = LONGEST) -> str:
    """`text` from data on one line, safe to print, and not too long."""
    shown = visible(text.replace("\n", "⏎"))
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


STYLES = {"critical": "bold red", "warning": "yellow", "note": "dim"}


def verdict(diagnosis: Mapping[str, Any]) -> str:
    """One line: clean, or what explains most."""
    f1 = {stage["name"]: stage["f1"] for stage in diagnosis["measured"]["ablation"]["stages"]}
    asked = f"F1 {f1['bottleneck']:.1f} of {f1['raw']:.1f}, {diagnosis['questions']} questions"
    if diagnosis["clean"]:
        return f"Nothing wrong was found ({asked})."
    first = diagnosis["findings"][0]
    return f"{first['title']} ({asked}; explains {first['explains']:.1f})."


def findings(diagnosis: Mapping[str, Any]) -> Iterator[Text]:
    """Every finding as a few lines, the most F1 first."""
    for number, finding in enumerate(diagnosis["findings"], 1):
        style = STYLES[finding["severity"]]
        head = f"{number}. {finding['title']}"
        claim = f"   {finding['severity']}, explains {finding['explains']:.1f} points of F1"
        yield Text.assemble((head, style), "\n", (claim, "dim"))
        for line in finding["evidence"]:
            yield Text(f"   - {excerpt(line, 200)}")
        yield Text(f"   {finding['remedy']}")
        if finding["command"]:
            yield Text(f"   Try: {finding['command']}", style="bold")


def stages(diagnosis: Mapping[str, Any]) -> Iterator[Table]:
    """F1, perplexity and agreement after each stage, and with one thing changed; narrower ones follow."""
    yield _stages(diagnosis, "F1 [95 %]", "prompt perplexity", "agrees with text")
    yield _stages(diagnosis, "F1 [95 %]", "agrees")
    yield _stages(diagnosis, "F1 [95 %]")


def _stages(diagnosis: Mapping[str, Any], *heads: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(("what the LLM receives", *heads)):
        table.add_column(name, no_wrap=True, justify="left" if number == 0 else "right")
    ablation = diagnosis["measured"]["ablation"]
    for entry in ablation["stages"] + ablation["variants"]:
        low, high = entry["f1_ci95"]
        perplexity = "" if entry["perplexity"] is None else f"{entry['perplexity']:.2f}"
        agreement = "" if entry["agreement"] is None else f"{100 * entry['agreement']:.1f} %"
        shown = {"F": f"{entry['f1']:.1f}  [{low:.1f}, {high:.1f}]", "p": perplexity, "a": agreement}
        table.add_row(MEANINGS[entry["name"]], *(shown[head[0]] for head in heads))
    return table


MEANINGS = {
    "raw": "raw: the original embeddings",
    "inverse": "→ compressor and its inverse",
    "adapter": "→ + adapter, its own magnitudes",
    "bottleneck": "→ the bottleneck as it is",
    "true_norms": "with the originals' norms",
    "context_only": "with only the context crossing",
    "raw_anchor": "with `Answer:` raw",
    "closed_form": "untrained: least squares on these codes",
    "refit": "untrained: compressor fitted anew on plenty",
}


def numbers(diagnosis: Mapping[str, Any]) -> Iterator[str]:
    """What the other probes found, a line or two each."""
    measured = diagnosis["measured"]
    if (tokens := measured["tokens"]) and (statistics := measured["statistics"]):
        yield from _vectors(tokens, statistics)
    yield from _compressor(measured["compressor"])
    yield from _answers(measured["generation"]["ours"])
    yield from _objective(measured["objective"])


def _vectors(tokens: Mapping[str, Any], statistics: Mapping[str, Any]) -> Iterator[str]:
    buckets = [bucket for bucket in tokens["by_frequency"] if bucket["recovery"] is not None]
    shares = ", ".join(f"{bucket['bucket']}: {100 * bucket['recovery']:.0f} %" for bucket in buckets)
    yield f"Tokens      {100 * tokens['recovery_euclidean']:.1f} % nearest to themselves; by count {shares}"
    pairs = [
        f"{excerpt(pair['token'], 20)!r} as {excerpt(pair['read_as'], 20)!r} ({pair['positions']:.0f}×)"
        for pair in tokens["confusions"][:3]
    ]
    if pairs:
        yield f"Misread     {', '.join(pairs)}"
    norm, ranks = statistics["norm_ratio"], statistics["spectrum"]
    if norm:
        yield (
            f"Vectors     norm ratio {norm['median']:.3f} [{norm['p5']:.3f}, {norm['p95']:.3f}], "
            f"{100 * statistics['variance_ratio']:.0f} % of the variance, effective rank "
            f"{ranks['effective_rank_reconstructed']:.0f} of {ranks['effective_rank_original']:.0f}"
        )


def _compressor(compressor: Mapping[str, Any]) -> Iterator[str]:
    estimate, unseen = compressor["estimate"], compressor["unseen"]
    if (lost := compressor["lost_sensitivity"]) is not None:
        yield (
            f"Compressor  {100 * min(lost, 1):.1f} % of the variance that the LLM is sensitive to is lost; "
            f"fitted on {estimate['distinct_tokens']} tokens, unseen there "
            f"{100 * unseen['share_of_positions']:.1f} % of the test positions"
        )


def _answers(ours: Mapping[str, Any]) -> Iterator[str]:
    top = ours["most_common"]
    yield (
        f"Answers     {100 * ours['distinct_answers']:.0f} % distinct, {100 * ours['empty']:.0f} % empty, "
        f"{100 * ours['contains_gold']:.0f} % contain the gold text, most common "
        f"{excerpt(top['answer'], 20)!r} ({100 * top['share']:.0f} %)"
    )


def _objective(objective: Mapping[str, Any]) -> Iterator[str]:
    if terms := objective["terms"]:
        shares = ", ".join(f"{name} {100 * term['mean_share']:.0f} %" for name, term in terms.items())
        cosines = (objective["gradients"] or {"cosine": {}})["cosine"]
        agree = ", ".join(f"{pair} {cosine:+.2f}" for pair, cosine in cosines.items())
        yield f"Objective   {shares}{f'; gradients {agree}' if agree else ''}"


def prompt(tokens: Sequence[Mapping[str, Any]], width: int = 100) -> Iterator[Text]:
    """A prompt over what its reconstructed vectors are nearest to, in lines of `width` columns.

    What differs is marked; a long prompt is cut.
    """
    above, below, used = Text(), Text(), 0
    for token in tokens[:TOKENS]:
        original = excerpt(token["original"], 20)
        nearest = excerpt(token["nearest"], 20)
        columns = max(len(original), len(nearest)) + 1
        if used + columns > width:
            yield from (above, below)
            above, below, used = Text(), Text(), 0
        above.append(original.ljust(columns))
        below.append(("" if _read_right(token) else nearest).ljust(columns), style="bold red")
        used += columns
    yield from (above, below)
    if rest := tokens[TOKENS:]:
        misread = sum(not _read_right(token) for token in rest)
        yield Text(f"… and {len(rest)} more tokens, {misread} of them misread", style="dim")


def _read_right(token: Mapping[str, Any]) -> bool:
    return bool(token["match"] or not token["crosses"])

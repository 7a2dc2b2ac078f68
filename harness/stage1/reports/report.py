"""Results for people: the table, the verdict, the next commands."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PureWindowsPath
from typing import Any, Literal

from rich.table import Table

from stage1.config import format_setting
from stage1.evaluation.squad import WORDS_MISLEAD
from stage1.training.course import told, unimproved

ROWS = {
    "text": "ceiling: token ids",
    "raw": "original embeddings",
    "linear": "compressor and its inverse",
    "bottleneck": "the trained adapter",
    "mean": "floor: mean embedding",
    "no_context": "floor: question alone",
    "truncated": "control: text cut to as many bits",
    "shuffled": "control: another question's code",
}
"""What each row of an evaluation shows, in the order of the table."""

TEACHER_FORCED = "Teacher-forced: a loss saw the gold answers in training."
"""The mark of results that the other losses' do not compare with."""


def interval(value: float, ci95: Sequence[float], sign: str = "") -> str:
    """A number from 0 to 100, or a difference of two, with its interval; `sign` is `+` where all have one."""
    low, high = ci95
    return f"{value:{sign or 5}.1f}  [{low:{sign}.1f}, {high:{sign}.1f}]"


def columns(
    heads: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    left: int = 1,
    bold: Sequence[bool] = (),
    without: Collection[str] = (),
) -> Table:
    """Lines under their heads, of which no column is cut.

    Args:
        heads: of all columns; the first `left` hold words, the others numbers.
        lines: a cell for each head.
        left: how many columns hold words.
        bold: whether each line stands out; by default none does.
        without: heads of columns that are left out.
    """
    kept = [number for number, head in enumerate(heads) if head not in without]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number in kept:
        justify: Literal["left", "right"] = "left" if number < left else "right"
        table.add_column(heads[number], no_wrap=True, justify=justify)
    for line, stands_out in zip(lines, bold or [False] * len(lines), strict=True):
        table.add_row(*(line[number] for number in kept), style="bold" if stands_out else "")
    return table


def placeless(value: Any) -> Any:
    """A setting without the folders of this machine, for what is sent to others: a path's last part."""
    if not isinstance(value, str):
        return value
    is_place = value.startswith(("/", ".", "~")) or "\\" in value or value[1:3] == ":/"
    return PureWindowsPath(value).name if is_place else value  # which takes both kinds of separators


HEADER = ["row", "what the LLM receives", "F1 [95 %]", "exact match [95 %]", "F1 − text [95 %]"]


def cells(results: Mapping[str, Any]) -> list[list[str]]:
    """Every row of results as text, under `HEADER`; a bottleneck that saw the gold answers is marked."""
    ours = {"bottleneck": ", teacher-forced"} if _marked(results) else {}
    return [
        [
            row["row"],
            ROWS.get(row["row"], "") + ours.get(row["row"], ""),
            interval(row["f1"], row["f1_ci95"]),
            interval(row["exact_match"], row["exact_match_ci95"]),
            interval(row["f1_vs_text"], row["f1_vs_text_ci95"]) if row["row"] != "text" else "",
        ]
        for row in results["rows"]
    ]


def _marked(results: Mapping[str, Any]) -> bool:
    return bool(results.get("teacher_forced"))


def tables(results: Mapping[str, Any]) -> Iterator[Table]:
    """All conditions, a line each: every column first, then fewer, for terminals where all do not fit.

    What a row means goes first, then exact match, then the difference: F1 with its interval is never cut.
    """
    meaning, exact, difference = HEADER[1], HEADER[3], HEADER[4]
    lines, ours = cells(results), [row["row"] == "bottleneck" for row in results["rows"]]
    for without in ((), (meaning,), (meaning, exact), (meaning, exact, difference)):
        yield columns(HEADER, lines, left=2, bold=ours, without=without)


def summary(results: Mapping[str, Any]) -> Iterator[str]:
    """What crossed, rate, reconstruction and verdict, a line each."""
    rate, error = results["rate"], results["reconstruction"]
    asked, rules = results["questions"], results["protocol"]
    cut = f", {asked['truncated_prompts']} of the prompts truncated" if asked["truncated_prompts"] else ""
    yield f"Asked  {asked['n']} questions about {asked['passages']} passages as {rules['name']}{cut}"
    yield f"Rules  {_rules(rules)}"
    coded = f" ({rate['entropy_coded']:.1f} entropy-coded)" if "entropy_coded" in rate else ""
    yield (
        f"Rate   {rate['bits_per_token']:.1f} bits per token{coded}: "
        f"{_times(rate['vs_bf16'])} bf16 embeddings, "
        f"{_times(rate['vs_token_ids'])} token ids, {_times(rate['vs_text'])} UTF-8 text"
    )
    yield f"Size   {_size(results['size'])}"
    if error is not None:
        yield (
            f"Error  recon {error['recon']:.4f} (0 perfect, 1 the mean), cosine {error['cosine']:.4f}, "
            f"norm ratio {error['norm_ratio']:.3f}, "
            f"tokens recovered {100 * error['token_recovery']:.1f} %{_by_training(error)}"
        )
    if characters := [f"{r['row']} {r['character_f1']:.1f}" for r in results["rows"] if "character_f1" in r]:
        yield f"Note   {WORDS_MISLEAD} It is: {', '.join(characters)}."
    if trained := told(results.get("training")):
        yield f"Train  {trained}"
    if unmoved := unimproved(results.get("training")):
        yield unmoved
    yield f"Verdict: {results['verdict']['text']}{_origin(results)}"


def tasks_tables(results: Mapping[str, Any]) -> Iterator[Table]:
    """One line for each metric of each task and group: bare model, bottleneck, paired difference.

    In narrow terminals without the number of documents and examples.
    """
    heads = ("task", "metric", "n", "shots", "text", "bottleneck", "difference")
    lines = []
    for entry in [*results["tasks"], *results["groups"]]:
        name = entry.get("task") or f"{entry['group']} (group)"
        counted = [str(entry.get("n", "")), str(entry.get("num_fewshot", ""))]
        for metric in entry["metrics"]:
            arrow = {True: " ↑", False: " ↓", None: ""}[metric["higher_is_better"]]
            kept = "" if metric["filter"] == "none" else f" ({metric['filter']})"
            measured = [_with_error(metric[key], metric[f"{key}_stderr"]) for key in heads[4:]]
            lines.append([name, f"{metric['metric']}{kept}{arrow}", *counted, *measured])
            name, counted = "", ["", ""]
    for without in ((), ("n", "shots")):
        yield columns(heads, lines, left=2, without=without)


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def tasks_summary(results: Mapping[str, Any]) -> Iterator[str]:
    """What crossed, and how many bits it took, a line each."""
    rules = results["protocol"]
    what = (
        "contexts and continuations cross" if rules["scope"] == "all" else "contexts cross, the rest is raw"
    )
    special = "raw" if rules["keep_special"] else "cross"
    yield (f"Rules  scope {rules['scope']}: {what}; special tokens {special}, magnitude {rules['magnitude']}")
    for entry in results["tasks"]:
        if sent := entry["sent"]:
            yield (
                f"Rate   {entry['task']}: {sent['bits_per_token']:.1f} bits per token of context, "
                f"{_times(sent['vs_bf16'])} bf16 embeddings, {_times(sent['vs_token_ids'])} token ids"
            )
        else:
            yield f"Rate   {entry['task']}: nothing crossed"
    if _marked(results):
        yield TEACHER_FORCED


def _origin(results: Mapping[str, Any]) -> str:
    """Which phase the result is of and why, and whether training saw the gold answers."""
    said = ""
    if phases := results.get("phases"):
        last = max(phase["phase"] for phase in phases if phase["trained"])
        said = f" Result of phase {last} of {len(phases)}: {phases[-1]['reason']}."
    return f"{said} {TEACHER_FORCED}" if _marked(results) else said


def sweep_tables(record: Mapping[str, Any]) -> Iterator[Table]:
    """One line for each cell of a sweep, averaged over its seeds; with fewer columns for narrow terminals."""
    for detailed, cost in ((True, True), (False, True), (False, False)):
        yield _sweep_table(record, detailed=detailed, cost=cost)


def _sweep_table(record: Mapping[str, Any], *, detailed: bool, cost: bool) -> Table:
    compare = record["compare"]
    heads = [axis if detailed else axis.rpartition(".")[2] for axis in record["axes"]]
    heads += [*(["runs", "bits/token"] if cost else []), "F1 [95 %]", "of text F1"]
    heads += ["spread", "parameters"] if detailed else []
    if compare:
        against = f"{compare['axis']}={format_setting(compare['value'])}"
        heads.append(f"F1 − {against} [95 %]" if detailed else "difference [95 %]")
    lines = []
    for average in record["averages"]:
        spread, text = average["f1_spread"], average["text_f1"]
        line = [format_setting(value) for value in average["settings"].values()]
        if cost:
            line += [str(len(average["seeds"])), f"{average['bits_per_token']:.1f}"]
        line += [interval(average["f1"], average["f1_ci95"])]
        line += [f"{100 * average['f1'] / text:.0f} % of {text:.1f}" if text else "0.0"]
        if detailed:
            line += ["" if spread is None else f"{spread:.2f}", f"{average['parameters']:,}"]
        if compare:
            found = average["compared"]
            line.append(interval(found["f1_difference"], found["f1_difference_ci95"]) if found else "")
        lines.append(line)
    return columns(heads, lines, left=len(record["axes"]))


def _rules(rules: Mapping[str, Any]) -> str:
    anchor = "raw" if rules["raw_anchor"] or rules["scope"] == "context" else "crosses"
    special = "raw" if rules["keep_special"] else "cross"
    return (
        f"scope {rules['scope']}, closing `Answer:` {anchor}, special tokens {special}, "
        f"magnitude {rules['magnitude']}"
    )


def _size(size: Mapping[str, Any]) -> str:
    parts = (
        f"{part} {size[part]['parameters']:,} parameters ({size[part]['bytes'] / 1e6:.3g} MB)"
        for part in ("compressor", "adapter")
    )
    return f"{size['code_dim']} of {size['embed_dim']} dimensions, {size['ratio']:.3g}×; {', '.join(parts)}"


def _by_training(error: Mapping[str, Any]) -> str:
    """Token recovery by whether training saw the token."""
    seen, unseen = error["token_recovery_seen"], error["token_recovery_unseen"]
    if seen is None or unseen is None:
        return " (all of them unseen in training)" if seen is None else " (all of them seen in training)"
    return (
        f" (seen in training {100 * seen:.1f} %, "
        f"unseen {100 * unseen:.1f} %, which are {100 * error['unseen']:.1f} % of all)"
    )


def timings(timings: Mapping[str, Any]) -> str:
    """How long training, encoding and decoding took, and how fast the bottleneck was asked."""
    said = []
    if speed := timings.get("questions_per_second", {}).get("bottleneck"):
        said.append(f"{speed:.0f} questions per second")
    if "encode_us_per_token" in timings:
        said.append(
            f"encoding {timings['encode_us_per_token']:.3g} µs a token, "
            f"decoding {timings['decode_us_per_token']:.3g} µs"
        )
    if timings.get("training_seconds") is not None:
        said.append(f"trained in {timings['training_seconds']:.0f} s")
    return f"Speed  {'; '.join(said)} ({timings['device']})"


def _times(ratio: float) -> str:
    """How many times smaller than something, or larger."""
    return f"{ratio:.1f}× smaller than" if ratio >= 1 else f"{1 / ratio:.1f}× larger than"

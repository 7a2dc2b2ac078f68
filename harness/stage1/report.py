"""Results for people: the table, the verdict, the next commands, the model card."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from stage1.errors import UsageError
from stage1.runs import Run

ROWS = {
    "text": "ceiling: token ids",
    "raw": "original embeddings",
    "linear": "compressor and its inverse",
    "bottleneck": "the trained adapter",
    "mean": "floor: mean embedding",
    "no_context": "floor: question alone",
}
"""What each row of an evaluation shows, in the order of the table."""


def _interval(value: float, interval: list[float]) -> str:
    return f"{value:5.1f}  [{interval[0]:.1f}, {interval[1]:.1f}]"


def cells(row: Mapping[str, Any]) -> list[str]:
    """One row of results as text: name, meaning, F1, exact match, difference to `text`."""
    against = row["row"] != "text"
    return [
        row["row"],
        ROWS[row["row"]],
        _interval(row["f1"], row["f1_ci95"]),
        _interval(row["exact_match"], row["exact_match_ci95"]),
        _interval(row["f1_vs_text"], row["f1_vs_text_ci95"]) if against else "",
    ]


HEADER = ("row", "what the LLM receives", "F1 [95 %]", "exact match [95 %]", "F1 − text [95 %]")


def table(results: Mapping[str, Any]) -> Table:
    """The six rows."""
    columns = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(HEADER):
        columns.add_column(name, no_wrap=True, justify="left" if number < 2 else "right")
    for row in results["rows"]:
        columns.add_row(*cells(row), style="bold" if row["row"] == "bottleneck" else "")
    return columns


def summary(results: Mapping[str, Any]) -> Iterator[str]:
    """Rate, reconstruction and verdict, a line each."""
    rate, rebuilt = results["rate"], results["reconstruction"]
    yield (
        f"Rate   {rate['bits_per_token']:.1f} bits per token: {_times(rate['vs_bf16'])} bf16 embeddings, "
        f"{_times(rate['vs_token_ids'])} token ids, {_times(rate['vs_text'])} UTF-8 text"
    )
    if rebuilt is not None:
        yield (
            f"Error  recon {rebuilt['recon']:.4f} (0 perfect, 1 the mean), cosine {rebuilt['cosine']:.4f}, "
            f"norm ratio {rebuilt['norm_ratio']:.3f}, "
            f"tokens recovered {100 * rebuilt['token_recovery']:.1f} %"
        )
    yield f"Verdict: {results['verdict']['text']}"


def _times(ratio: float) -> str:
    """How many times smaller than something, or larger."""
    return f"{ratio:.1f}× smaller than" if ratio >= 1 else f"{1 / ratio:.1f}× larger than"


def next_commands(run: Run, results: Mapping[str, Any] | None) -> Iterator[str]:
    """What is worth typing next."""
    yield f"stage1 eval {run.path}"
    if results is None:
        return
    config = run.config
    by_name = {row["row"]: row["f1"] for row in results["rows"]}
    same = f"stage1 train --compressor {config.compressor.name}"
    if by_name["bottleneck"] >= 0.85 * by_name["text"]:
        yield f"{same} --adapter {config.adapter.name} --set compressor.ratio=16"
    else:
        yield f"{same} --adapter {config.adapter.name} --set compressor.ratio=4"
    if config.adapter.name != "codebook":
        yield f"{same} --adapter codebook"


def model_card(run: Run, results: Mapping[str, Any] | None) -> str:
    """README.md of a published run."""
    config, manifest = run.config, run.read_manifest()
    lines = [
        "---",
        "library_name: stage1",
        "tags: [stage1, embedding-compression]",
        *([f"base_model: {config.model.name}"] if "/" in config.model.name.strip("./") else []),
        "---",
        "",
        f"# {config.compressor.name} → {config.adapter.name}, for `{config.model.name}`",
        "",
        "A bottleneck for the input embeddings of a frozen LLM, trained and measured with stage1.",
        "",
        "```python",
        "from stage1 import Bottleneck",
        "",
        'bottleneck = Bottleneck.from_pretrained("REPO_ID")',
        "```",
        "",
    ]
    if results is not None:
        lines += ["## Results", "", *markdown_table(results), "", *(f"- {s}" for s in summary(results)), ""]
        lines += [f"Data: `{config.data.name}`, seed {config.seed}.", ""]
    lines += ["## Configuration", "", "```yaml", config.to_yaml().rstrip(), "```", ""]
    versions = ", ".join(f"{name} {number}" for name, number in manifest.get("versions", {}).items())
    return "\n".join([*lines, f"Versions: {versions}.", ""])


def markdown_table(results: Mapping[str, Any]) -> Iterator[str]:
    """The six rows as Markdown."""
    yield f"| {' | '.join(HEADER)} |"
    yield f"|{'---|' * len(HEADER)}"
    for row in results["rows"]:
        yield f"| {' | '.join(cells(row))} |"


PUBLISHED = ["bottleneck.json", "bottleneck.safetensors", "config.yaml", "manifest.json", "results.json"]
"""The files of a run that `push` uploads; predictions stay at home, they quote the data set."""


def push(run: Run, repo_id: str, *, private: bool) -> str:
    """Upload a trained run with a model card to the Hub; returns its address.

    Raises:
        UsageError: not trained yet, not logged in, no right to write, or no network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    run.require_trained()
    card = model_card(run, run.read_results()).replace("REPO_ID", repo_id)
    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=repo_id)
        api.upload_folder(folder_path=Path(run.path), allow_patterns=PUBLISHED, repo_id=repo_id)
    except HFValidationError as error:
        raise UsageError(f"{repo_id!r} is no repository id: {error}", "Write it as owner/name.") from None
    except Exception as error:  # the client's own, its HTTP library's and the system's have no common base
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"Cannot publish to {repo_id}: {reason}", "Log in with `hf auth login`, and check the network."
        ) from None
    return str(address)

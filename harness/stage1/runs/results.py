"""What an evaluation found, typed: the content of `results.json`.

Numbers are means over the questions. F1 and exact match go from 0 to 100; an interval is [low, high] of 95 %,
bootstrapped over passages.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

Interval = tuple[float, float]


class _Record(BaseModel):
    # What a later version adds is kept: a reader of results need not know everything in them.
    model_config = ConfigDict(extra="allow", frozen=True)


class Row(_Record):
    """One condition: what the LLM received, and how it answered."""

    row: str
    """`text`, `raw`, `linear`, `bottleneck`, `mean`, `no_context`, …"""
    task: str
    n: int
    f1: float
    f1_ci95: Interval
    exact_match: float
    exact_match_ci95: Interval
    f1_vs_text: float
    """Difference to the row `text`, paired by question."""
    f1_vs_text_ci95: Interval
    answers_cut: int
    """Answers that `eval.max_new_tokens` ended."""
    answers_differ: int
    """Answers that are not, to the letter, those of the row `text`."""


class Rate(_Record):
    """What the prompt cost on the wire, side information and raw positions included."""

    bits_per_token: float
    vs_bf16: float
    """How many times fewer bits than bfloat16 embeddings."""
    vs_token_ids: float
    vs_text: float


class Reconstruction(_Record):
    """How far the reconstructed embeddings are from the originals."""

    recon: float
    """Mean squared error over the embeddings' variance: 0 perfect, 1 always the mean."""
    mse: float
    cosine: float
    relative_error: float
    norm_ratio: float
    token_recovery: float
    """Share of positions whose reconstructed vector is nearest to its own token, 0 to 1."""


class Questions(_Record):
    """What was asked."""

    n: int
    passages: int
    truncated_prompts: int
    truncated_tokens: int


class GateResult(_Record):
    """Whether embeddings do what token ids do, see `stage1.evaluation.gate`."""

    prompts: int
    difference: float
    noise: float
    changed: int
    broken: bool


class Verdict(_Record):
    """What the numbers say."""

    level: str
    ratio: float | None
    """The bottleneck's share of the text F1."""
    ratio_ci95: Interval | None
    questions_needed: int | None
    text: str


class Answering(_Record):
    """What answered."""

    sha256: str
    """Of all files that decide what the model answers."""
    dtype: str


class Results(_Record):
    """An evaluation, as `results.json` holds it. `results["bottleneck"]` is a row."""

    rows: list[Row]
    rate: Rate
    reconstruction: Reconstruction | None
    """None where the compressor changes the length."""
    questions: Questions
    gate: GateResult
    verdict: Verdict
    protocol: dict[str, Any]
    model: Answering

    def __getitem__(self, row: str) -> Row:
        """The row called `row`.

        Raises:
            KeyError: it was not asked.
        """
        for found in self.rows:
            if found.row == row:
                return found
        raise KeyError(row)

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
    character_f1: float | None = None
    """F1 over characters, where texts put no spaces between words."""
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
    entropy_coded: float | None = None
    """Bits per token, each symbol of a quantised code with an ideal entropy coder of its own."""


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
    token_recovery_seen: float | None
    """That share among tokens that crossed in training."""
    token_recovery_unseen: float | None
    """That share among all others; None where the questions hold none."""
    unseen: float
    """Share of positions whose token did not cross in training."""


class Part(_Record):
    """What of a compressor or an adapter is saved: numbers, and the bytes they take."""

    parameters: int
    bytes: int


class Size(_Record):
    """How wide embeddings and code are, and how large what makes the one of the other."""

    embed_dim: int
    code_dim: int
    ratio: float
    compressor: Part
    adapter: Part


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
    size: Size
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

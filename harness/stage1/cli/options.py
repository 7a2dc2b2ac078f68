"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from stage1.config import RunConfig, granted, overlay, parse_loss, read_yaml
from stage1.config.presets import PROTOCOLS, RECIPES, Presets
from stage1.errors import UsageError


def complete(kind: str | None) -> Callable[[str], list[tuple[str, str]]]:
    """Shell completion with the installed plugins of a kind, or of all."""

    def names(incomplete: str) -> list[tuple[str, str]]:
        from stage1.plugins import load_plugins

        records = load_plugins().components
        usable = [r for r in records if r.status == "ok" and kind in (None, r.kind)]
        return [(r.name, r.summary) for r in usable if r.name.startswith(incomplete)]

    return names


def complete_preset(presets: Presets) -> Callable[[str], list[tuple[str, str]]]:
    """Shell completion with recipes or protocols."""

    def names(incomplete: str) -> list[tuple[str, str]]:
        return [(p.name, p.summary) for p in presets.all() if p.name.startswith(incomplete)]

    return names


ConfigFile = Annotated[
    Path | None, typer.Argument(metavar="CONFIG.yaml", help="Settings; flags and --set override them.")
]
Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=complete_preset(RECIPES),
        help="Settings to start from, see `stage1 recipes`; CONFIG.yaml, flags and --set override them.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        autocompletion=complete("model"),
        help="A model plugin (default: `tiny`, embedded), a folder, a GGUF file, or a Hugging Face Hub id.",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")]
TrustRemoteCode = Annotated[
    bool | None,
    typer.Option(
        "--trust-remote-code/--no-trust-remote-code",
        help="Run the Python code that the model's folder brings. A file cannot say so. Default: no.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE|OWNER/NAME|train=…,test=…",
        help="Questions: `tiny-squad` (default), `squad` or a plugin's, a file (SQuAD, MRQA, HotpotQA, "
        "TriviaQA, JSON, JSONL, Parquet, CSV, TSV; .gz), or a data set on the Hub; train=A,test=B names two.",
    ),
]
Strict = Annotated[
    bool | None,
    typer.Option("--strict", help="Refuse data with a bad record instead of leaving the record out."),
]
CompressorNames = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        autocompletion=complete("compressor"),
        help="May be repeated: the code goes through each in turn. Default: pca.",
    ),
]
AdapterName = Annotated[
    str | None, typer.Option(metavar="NAME", autocompletion=complete("adapter"), help="Default: residual.")
]
LossNames = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=WEIGHT|auto][@ramp:STEPS]",
        autocompletion=complete("loss"),
        help="A term of the objective; may be repeated. Default: recon.",
    ),
]
Magnitude = Annotated[
    str | None, typer.Option(metavar="free|vocab|sent", help="Who says how long a reconstructed vector is.")
]
Scope = Annotated[str | None, typer.Option(metavar="prompt|context", help="What crosses the bottleneck.")]
RawAnchor = Annotated[
    bool | None, typer.Option("--raw-anchor/--no-raw-anchor", help="Leave the closing `Answer:` raw.")
]
KeepSpecial = Annotated[
    bool | None,
    typer.Option("--keep-special/--no-keep-special", help="Special tokens (BOS) cross raw. Default: yes."),
]
Init = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="Start from this trained run's bottleneck; model, data, compressor, adapter and rules are its.",
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seeds everything random.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:0, mps.")]
Dtype = Annotated[
    str | None, typer.Option(metavar="auto|float32|bfloat16|float16", help="Type the LLM runs in.")
]
LogWith = Annotated[
    list[str] | None,
    typer.Option(metavar="tensorboard|wandb", help="Also log to an experiment tracker; may be repeated."),
]
Protocol = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=complete_preset(PROTOCOLS),
        help="How the questions are put, see `stage1 protocols`. Default: plain.",
    ),
]
Shots = Annotated[
    int | None, typer.Option(min=0, help="Examples with their answers in front of every question.")
]
Chat = Annotated[
    bool | None, typer.Option("--chat/--no-chat", help="Ask through the tokenizer's chat template.")
]
Template = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Text around {context} and {question}; \\n is a new line.")
]
Ratio = Annotated[
    float | None, typer.Option(min=1, help="Width of the embeddings divided by the code's. Default: 8.")
]
Dim = Annotated[int | None, typer.Option(min=1, help="Width of the code; instead of --ratio.")]
Steps = Annotated[int | None, typer.Option(min=0, help="Optimiser steps at most; 0: closed forms alone.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Test questions at most.")]
BatchSize = Annotated[str | None, typer.Option(metavar="N|auto", help="Prompts per batch.")]
FailBelow = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        min=0,
        max=1,
        help="End with code 3 where the bottleneck keeps less than this share of the text F1.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any other setting, as in `--set compressor.dim=64`; `stage1 config show` lists them.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON, alone on standard output.")]


def batch_size(text: str | None) -> int | str | None:
    """What `--batch-size` says.

    Raises:
        UsageError: neither a number of prompts nor `auto`.
    """
    if text is None or text == "auto":
        return text
    if not (text.isdecimal() and int(text)):
        raise UsageError(f"--batch-size {text!r} is not a number of prompts.", "Pass 1, 2, … or auto.")
    return int(text)


def prompt_flags(shots: int | None, chat: bool | None, template: str | None) -> dict[str, Any]:
    """The flags that say how a question is put, as `flags_given` takes them."""
    text = None if template is None else template.replace("\\n", "\n")
    return {"prompt__shots": shots, "prompt__chat": chat, "prompt__template": text}


def flags_given(
    losses: list[str] | None = None, compressors: list[str] | None = None, **values: Any
) -> dict[str, Any]:
    """Dotted path → value of the flags that the user typed; `model__name` stands for `model.name`.

    Raises:
        UsageError: a loss is none.
    """
    given = {name.replace("__", "."): value for name, value in values.items() if value is not None}
    if compressors:
        given["compressors"] = compressors
    if losses:
        given["losses"] = dict(parse_loss(text) for text in losses)
    return given


INHERITED = (
    *("model", "data", "prompt", "compressors", "adapter"),
    *("magnitude", "scope", "raw_anchor", "keep_special"),
)
"""Settings that a run started with `--init RUN` takes from RUN where nothing else is said."""


def inherited(init: Path) -> dict[str, Any]:
    """What goes with the bottleneck in the run `init`; nothing where there is no run's configuration."""
    if not init.is_dir():
        raise UsageError(f"{init} does not exist.", "Pass a trained run's folder, runs/… by default.")
    path = init / "config.yaml"
    tree = read_yaml(path) if path.is_file() else {}
    return {key: tree[key] for key in INHERITED if key in tree}


def configuration(
    file: Path | None,
    flags: dict[str, Any],
    settings: list[str] | None,
    base: dict[str, Any] | None = None,
    *,
    recipe: str | None = None,
    protocol: str | None = None,
) -> RunConfig:
    """The run's configuration: defaults < `base` < recipe < protocol < YAML file < flags < `--set`.

    Raises:
        UsageError: something is wrong with it, or a file wants the model's Python code to run (`granted`).
    """
    tree = overlay(base or {}, RECIPES.find(recipe).settings if recipe else {})
    tree = overlay(tree, PROTOCOLS.find(protocol).settings if protocol else {})
    tree = overlay(tree, read_yaml(file) if file else {})
    return granted(tree, flags, settings or [])

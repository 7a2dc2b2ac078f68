"""The options that several commands share, in groups (`stage1.cli.groups`)."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stage1.cli import completion
from stage1.cli.groups import Options, Setting
from stage1.errors import UsageError

if TYPE_CHECKING:  # pydantic takes longer to load than `--help` may
    from stage1.config import RunConfig


def _losses(texts: list[str]) -> dict[str, Any]:
    from stage1.config import parse_loss

    return dict(map(parse_loss, texts))


def _batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    if not (text.isdecimal() and int(text)):
        raise UsageError(f"--batch-size {text!r} is not a number of prompts.", "Pass 1, 2, … or auto.")
    return int(text)


RunFolder = Annotated[
    Path,
    typer.Argument(metavar="RUN", autocompletion=completion.run, help="The folder that `stage1 train` made."),
]
TrustRemoteCode = Annotated[
    bool | None,
    typer.Option(
        "--trust-remote-code/--no-trust-remote-code",
        help="Run the Python code that the model's folder brings. A file cannot say so. Default: no.",
    ),
    Setting("model.trust_remote_code"),
]
ModelHere = Annotated[
    str | None,
    typer.Option(help="Where the run's model lies on this machine, if elsewhere."),
    Setting("model.name"),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE|OWNER/NAME|train=…,test=…",
        help="Questions: `tiny-squad` (default), `squad` or a plugin's, a file (SQuAD, MRQA, HotpotQA, "
        "TriviaQA, JSON, JSONL, Parquet, CSV, TSV; .gz), or a data set on the Hub; train=A,test=B names "
        "two.",
    ),
    Setting("data.name"),
]
Strict = Annotated[
    bool | None,
    typer.Option("--strict", help="Refuse data with a bad record instead of leaving the record out."),
    Setting("data.strict"),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        autocompletion=completion.setting,
        help="Any other setting, as in `--set compressor.dim=64`; `stage1 config show` lists them.",
    ),
]
Rows = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,…|all",
        help="Rows to ask: `truncated,shuffled`, for example; those that a verdict needs (text, raw, "
        "bottleneck, no_context) are always among them.",
    ),
]
FailBelow = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        min=0,
        max=1,
        help="End with code 3 if the bottleneck keeps less than this share of the text F1.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON, alone on standard output.")]


def print_json(value: Any) -> None:
    """What `--json` prints."""
    from stage1.files import to_json

    typer.echo(to_json(value), nl=False)


@dataclass(frozen=True)
class ModelAndData(Options):
    """Model and data."""

    model: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.plugin("model"),
            help="A model plugin (default: `tiny`, embedded), a folder, a GGUF file, or a Hugging Face Hub "
            "id.",
        ),
        Setting("model.name"),
    ] = None
    trust_remote_code: TrustRemoteCode = None
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:0, mps."), Setting("device")] = (
        None
    )
    data: Data = None
    strict: Strict = None
    limit: Annotated[
        int | None, typer.Option(min=1, help="Test questions at most."), Setting("eval.limit")
    ] = None
    batch_size: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Prompts per batch of the evaluation."),
        Setting("eval.batch_size", _batch_size),
    ] = None


@dataclass(frozen=True)
class BottleneckParts(Options):
    """Bottleneck."""

    compressor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.plugin("compressor"),
            help="May be repeated: the code goes through each in turn. Default: pca.",
        ),
        Setting("compressors"),
    ] = None
    ratio: Annotated[
        float | None,
        typer.Option(min=1, help="Width of the embeddings divided by the code's. Default: 8."),
        Setting("compressor.ratio"),
    ] = None
    dim: Annotated[
        int | None,
        typer.Option(min=1, help="Width of the code; instead of --ratio."),
        Setting("compressor.dim"),
    ] = None
    adapter: Annotated[
        str | None,
        typer.Option(metavar="NAME", autocompletion=completion.plugin("adapter"), help="Default: residual."),
        Setting("adapter.name"),
    ] = None


@dataclass(frozen=True)
class Protocol(Options):
    """Prompts and what is compressed."""

    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.preset("protocol"),
            help="Prompt protocol, see `stage1 protocols`. Default: plain.",
        ),
    ] = None
    shots: Annotated[
        int | None,
        typer.Option(min=0, help="Examples with their answers in front of every question."),
        Setting("prompt.shots"),
    ] = None
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Ask through the tokenizer's chat template."),
        Setting("prompt.chat"),
    ] = None
    template: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Text around {context} and {question}; \\n is a new line."),
        Setting("prompt.template", lambda text: text.replace("\\n", "\n")),
    ] = None
    scope: Annotated[
        str | None,
        completion.one_of("prompt|context", "Which part of the prompt is compressed."),
        Setting("scope"),
    ] = None
    raw_anchor: Annotated[
        bool | None,
        typer.Option("--raw-anchor/--no-raw-anchor", help="Leave the closing `Answer:` uncompressed."),
        Setting("raw_anchor"),
    ] = None
    keep_special: Annotated[
        bool | None,
        typer.Option(
            "--keep-special/--no-keep-special",
            help="Leave special tokens (BOS) uncompressed. Default: yes.",
        ),
        Setting("keep_special"),
    ] = None
    magnitude: Annotated[
        str | None,
        completion.one_of(
            "free|vocab|sent",
            "Norm of the reconstructed vectors: as the adapter says, the vocabulary's mean, or each "
            "original's, sent along and counted.",
        ),
        Setting("magnitude"),
    ] = None

    def preset(self) -> dict[str, Any]:
        """The protocol's settings; none where no protocol was named."""
        from stage1.config.presets import PROTOCOLS

        return PROTOCOLS.find(self.protocol).settings if self.protocol else {}


@dataclass(frozen=True)
class Training(Options):
    """Training."""

    loss: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=WEIGHT|auto][@ramp:STEPS]",
            autocompletion=completion.plugin("loss"),
            help="A term of the objective; may be repeated. Default: recon.",
        ),
        Setting("losses", _losses),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(min=0, help="Optimiser steps at most; 0: closed forms alone."),
        Setting("train.steps"),
    ] = None
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            autocompletion=completion.run,
            help="Start from this trained run's bottleneck, with its model, data, compressor, adapter and "
            "prompts.",
        ),
        Setting("init", str),
    ] = None
    log_with: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.plugin("tracker"),
            help="Also log to an experiment tracker: `tensorboard`, `wandb` or a plugin's; may be repeated.",
        ),
        Setting("log_with"),
    ] = None


@dataclass(frozen=True)
class RunOptions(Training, Protocol, BottleneckParts, ModelAndData):
    """Settings."""

    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG.yaml|RUN",
            autocompletion=completion.run,
            help="Settings, or a run that has them; flags and --set override them.",
        ),
    ] = None
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.preset("recipe"),
            help="Settings to start from, see `stage1 recipes`; CONFIG.yaml, flags and --set override them.",
        ),
    ] = None
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a Hub model."), Setting("model.revision")
    ] = None
    dtype: Annotated[
        str | None,
        completion.one_of("auto|float32|bfloat16|float16", "Type the LLM runs in."),
        Setting("dtype"),
    ] = None
    settings: Settings = None

    def configuration(self, base: dict[str, Any] | None = None, *, output: Path | None = None) -> "RunConfig":
        """The run's configuration: `tree` < flags and `output` < `--set`.

        Raises:
            UsageError: something is wrong with it, or a file wants the model's Python code to run.
        """
        from stage1.config import granted

        flags = {**self.given(), **({"output": str(output)} if output else {})}
        return granted(self.tree(base), flags, self.settings or [])

    def tree(self, base: dict[str, Any] | None = None) -> dict[str, Any]:
        """What flags and `--set` override: `base` (default: what `--init` brings) < recipe < protocol < file.

        Raises:
            UsageError: there is no such recipe, protocol, run or file, or it cannot be read.
        """
        if base is None:
            base = inherited(self.init) if self.init else {}
        from stage1.config.presets import from_presets

        return from_presets(self._file, base, recipe=self.recipe, protocol=self.protocol)

    def presets(self) -> dict[str, str]:
        """The recipe and the protocol, by kind, as far as they were typed or the file names them."""
        from stage1.config.presets import PRESETS

        named = {kind: getattr(self, kind) or self._file.get(kind) for kind in PRESETS}
        return {kind: str(name) for kind, name in named.items() if name is not None}

    @cached_property
    def _file(self) -> dict[str, Any]:
        return _settings_of(self.config) if self.config else {}


@dataclass(frozen=True)
class SeededRunOptions(RunOptions):
    """Settings."""

    seed: Annotated[int | None, typer.Option(help="Seeds everything random."), Setting("seed")] = None


def rows_asked(text: str | None) -> tuple[str, ...] | None:
    """What `--rows` says; None: all there are.

    Raises:
        UsageError: there is no such row.
    """
    from stage1.evaluation.conditions import chosen

    return None if text is None else chosen(text.split(","))


INHERITED = (
    *("model", "data", "prompt", "compressors", "adapter"),
    *("magnitude", "scope", "raw_anchor", "keep_special"),
)
"""Settings that a run started with `--init RUN` takes from RUN where nothing else is said."""


def _settings_of(path: Path) -> dict[str, Any]:
    """The settings in a file, or those of the run in a folder, which go to a new one."""
    from stage1.config import read_yaml

    if not path.is_dir():
        return read_yaml(path)
    from stage1.runs.run import Run

    return {key: value for key, value in Run.open(path).settings.items() if key != "output"}


def inherited(init: Path) -> dict[str, Any]:
    """What goes with the bottleneck in the run `init`; nothing where there is no run's configuration."""
    if not init.is_dir():
        raise UsageError(f"{init} does not exist.", "Pass a trained run's folder, runs/… by default.")
    from stage1.config import read_yaml

    path = init / "config.yaml"
    tree = read_yaml(path) if path.is_file() else {}
    return {key: tree[key] for key in INHERITED if key in tree}

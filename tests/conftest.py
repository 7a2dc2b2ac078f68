"""What many tests need: a quiet machine, a small corpus, the command line in a subprocess."""

import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import pytest
from filelock import FileLock

# Workers of pytest-xdist share the cores: one thread for each and for what it starts, unless told otherwise.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from plugin_sites import RICH, TOYS, Site, compressor
from random_llama import random_llama
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import count_tokens
from stage1.config import ModelConfig, PromptConfig, RunConfig, merge, validate
from stage1.data.prompts import Crossing, Prompt, PromptBuilder
from stage1.data.records import Question
from stage1.errors import UsageError
from stage1.evaluation.lm_eval.catalogue import everything
from stage1.experiment import train_run
from stage1.llm.location import locate
from stage1.plugins import Registry, load_plugins, resolve
from stage1.plugins.tensors import TokenStats
from stage1.progress import Progress
from stage1.scaffold import create, named
from stage1.session import Session
from wheels import Environment

ROOT = Path(__file__).resolve().parent.parent
SQUAD = ROOT.parent / "shared" / "data" / "squad"
EXAMPLES = sorted((ROOT / "examples").glob("stage1-*"))

SMALL = (
    "data.train=300",
    "data.selection=60",
    "train.until=steps",
    "train.steps=40",
    "train.warmup=2",
    "train.check_every=10",
    "train.check_questions=8",
    "train.check_prompts=8",
    "eval.limit=24",
)
"""Settings that make a whole run on the embedded model a matter of seconds."""

FEW = (
    *("data.train=40", "data.selection=8", "adapter=linear"),
    *("train.steps=2", "train.check_every=2", "train.check_questions=1", "train.batch_prompts=4"),
    *("eval.limit=4", "eval.max_new_tokens=3"),
)
"""Beside those, settings that leave of a run little but its way."""

NARROW = "adapter.expansion=1"
"""Makes training the default adapter a matter of half as many."""

GENERATED = {"compressor": "top_k", "adapter": "ridge", "loss": "huber", "task": "passages"}
"""Kind → name of the plugins that `generated` writes."""

Cli = Callable[..., subprocess.CompletedProcess[str]]

MOST_WORKERS = 8
"""Each holds torch and the embedded model, about 1 GB."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """All tests run on all cores; files that were named, in this process, where a debugger works."""
    if config.args != config.getini("testpaths"):
        return 0
    return min(MOST_WORKERS, os.cpu_count() or 1)


def launched(*args: str) -> str:
    """What `stage1 ARGS` prints that `accelerate launch` starts in two processes."""
    launch = [
        "launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
    ]
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *launch, "-m", "stage1", *args]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, env=env, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c() -> None:
    """Ctrl-C means something in tests that were started in the background, too, where it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache for the tests of this process, their fixtures included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGE1_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run `python -m stage1 …` in an empty folder; the result has returncode, stdout and stderr."""

    def run(
        *args: str, cwd: Path = tmp_path, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "stage1", *args]
        whole = {**os.environ, "COLUMNS": "160", **(env or {})}
        return subprocess.run(command, cwd=cwd, env=whole, capture_output=True, text=True, timeout=600)

    return run


def build_prompts(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerFast,
    *,
    prompt: PromptConfig | None = None,
    examples: Sequence[Question] = (),
    with_context: bool = True,
    max_tokens: int = 400,
    **crossing: Any,
) -> list[Prompt]:
    """Prompts without a session."""
    config = prompt or PromptConfig()
    builder = PromptBuilder(config, tokenizer, examples, with_context=with_context)
    return builder.build(questions, Crossing(**crossing), max_tokens=max_tokens)


class Notes(Progress):
    """Keeps what would be shown."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


class CtrlC(Progress):
    """Ctrl-C at the `nth` unit of the work called `label`, or before it begins."""

    def __init__(self, label: str, nth: int) -> None:
        super().__init__()
        self.label, self.nth, self.at_once = label, nth, not nth

    @contextmanager
    def task(self, label: str, total: int | None = None, unit: str = "") -> Iterator[Callable[[int], None]]:
        def advance(done: int) -> None:
            if label == self.label:
                before, self.nth = self.nth, self.nth - done
                if before > 0 >= self.nth:  # a batch may jump past it
                    self.stop()

        if label == self.label and self.at_once:
            self.stop()
        yield advance

    def stop(self) -> None:
        signal.raise_signal(signal.SIGINT)


class Killed(Exception):
    """Nothing is saved any more."""


class Kill(CtrlC):
    """The same, but as a kill is."""

    def stop(self) -> None:
        raise Killed


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Files of this process may grow to `size` bytes, a real limit of the operating system."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def printed(self) -> str:
        """Its standard output, where it ended well."""
        assert self.code == 0, self.err
        return self.out


Invoke = Callable[..., Result]


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Invoke:
    """Run a command in this process, in an empty folder: the same code without the seconds of start-up."""
    from stage1.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stage1.cli.display.SLOW", math.inf)  # or a busy machine would make it say more

    def run(*args: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["stage1", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        return Result(int(ended.value.code or 0), *capsys.readouterr())

    return run


def refused(result: Result, *words: str, code: int = 2, lines: int = 2) -> None:
    """The user learns what is wrong and what to do, and nothing else."""
    assert result.code == code, result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    shown = [line for line in result.err.splitlines() if line.strip()]
    assert 1 <= len(shown) <= lines, result.err
    missing = [word for word in words if word not in result.err]
    assert not missing, f"{missing} not in {result.err}"


def small_config(*settings: str) -> RunConfig:
    """A configuration of a small run on the embedded model."""
    return validate(merge({}, {}, [*SMALL, *settings]))


@cache
def embedded() -> Session:
    """The embedded model, loaded once in a process."""
    return Session.open(small_config(), Progress(), data="none")


def opened(*settings: str, progress: Progress | None = None) -> Session:
    """A session on the embedded model, which all of them share."""
    return Session.open(small_config(*settings), progress or Progress(), before=embedded())


def with_settings(session: Session, *settings: str) -> Session:
    """The same model and questions under other settings."""
    return session.under(validate(merge(session.config.model_dump(mode="json"), {}, settings)))


def with_llm(session: Session, llm: PreTrainedModel) -> Session:
    """The session with another LLM behind the same table and files."""
    model = copy(session.model)
    model.llm = llm
    return replace(session, model=model)


def with_table(session: Session, table: Tensor) -> Session:
    """The session with another embedding table in front of the same LLM."""
    model = copy(session.model)
    model.table = table
    return replace(session, model=model)


@pytest.fixture(scope="session")
def session() -> Session:
    """The embedded model and a few hundred questions."""
    return opened()


@pytest.fixture(scope="session")
def model(session: Session) -> PreTrainedModel:
    """The embedded LLM, frozen. A test that hangs hooks on a model loads its own."""
    return session.model.llm


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small Llama with random weights. Copy it before writing to it."""
    return random_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def broken(llama: Path, tmp_path: Path) -> Path:
    """A copy of the small Llama that a test may damage."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


def located(name: str | Path, weights: Any = "all") -> Path:
    """Where the model called `name` lies."""
    return locate(ModelConfig(name=str(name)), weights=weights, progress=Progress())


def refusal(step: Callable[[Path], Any], source: Path) -> str:
    """What `step` says of `source`: the problem, and in a second line the remedy."""
    with pytest.raises(UsageError) as refused:
        step(source)
    assert refused.value.remedy
    assert str(refused.value).count("\n") == 1
    return str(refused.value)


@pytest.fixture(scope="session")
def gibberish(llama: Path) -> Session:
    """A random Llama: it answers nothing, but quickly, and differently to every change of its input."""
    return Session.open(small_config(f"model={llama}", "eval.max_new_tokens=6"), Progress())


def built(stats: TokenStats, *options: str, fit: bool = True) -> Bottleneck:
    """A bottleneck for vectors as wide as those of `stats`, fitted to them."""
    config, width = small_config(*options), stats.embeds.shape[1]
    bottleneck = Bottleneck.build(resolve(config, load_plugins()), config.magnitude, width, config.seed)
    if fit:
        bottleneck.fit(stats, stats.embeds)
    return bottleneck.eval()


def fitted(session: Session, *options: str) -> Bottleneck:
    """A bottleneck with everything that needs no gradient."""
    stats = count_tokens(session.prompts(session.data.train), session.table)
    bottleneck = built(stats, *options, fit=False)
    bottleneck.fit(stats, session.table)
    return bottleneck.requires_grad_(False)


@pytest.fixture(scope="session")
def bottleneck(session: Session) -> Bottleneck:
    """A bottleneck of a quarter of the width, by which the embedded model loses nothing."""
    return fitted(session, "compressor.ratio=4", "adapter=linear")


@pytest.fixture
def few_prompts_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A diagnosis fits the compressor anew on a few prompts; on ten thousand it takes seconds."""
    monkeypatch.setattr("stage1.diagnosis.ablation.PLENTY", 400)


@pytest.fixture
def stats() -> TokenStats:
    """Counts and embeddings of 200 tokens of width 24, with strongly unequal counts and directions."""
    generator = torch.Generator().manual_seed(7)
    counts = torch.randint(1, 1000, (200,), generator=generator).double()
    mixing = torch.randn(24, 24, generator=generator)
    embeds = 0.01 * torch.randn(200, 24, generator=generator) @ mixing + 0.02
    return TokenStats(torch.arange(200), counts, embeds)


def settings_args(settings: Sequence[str] = SMALL) -> Iterator[str]:
    """`--set` arguments for the command line."""
    for text in settings:
        yield from ("--set", text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An empty folder at the front of the path; its modules are forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    site = Site(folder)
    yield site
    load_plugins.cache_clear()
    for module in site.modules:
        sys.modules.pop(module, None)


@pytest.fixture
def toys(site: Site) -> Registry:
    """The installed plugins and a package of compressors to chain, for this process's commands too."""
    site.install("toys", {"point": TOYS})
    return load_plugins()


@pytest.fixture
def rich(site: Site) -> Registry:
    """The installed plugins and one whose options are of every sort, one of them without a default."""
    for distribution, name in (("rich", "rich"), ("a-pca", "pca")):
        source = dedent(RICH) + compressor(name, body="Config = RichConfig")
        site.install(distribution, {"point": source})
    registry = site.load()
    assert [record.reason for record in registry.components if record.status != "ok"] == []
    return registry


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of pytest-xdist see, for what is made `once`."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "common"
    folder.mkdir(exist_ok=True)
    return folder


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, which the first worker to need it makes; the others wait."""
    made = folder.with_name(f"{folder.name}.made")
    with FileLock(f"{folder}.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def indexed(common: Path) -> Path:
    """A cache with lm-eval's list of tasks, whose reading takes seconds."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STAGE1_CACHE", str(folder))
            everything(load_plugins(), Progress())

    return once(common / "catalogue", make)


@pytest.fixture
def catalogued(indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of this test is one with lm-eval's list of tasks."""
    monkeypatch.setenv("STAGE1_CACHE", str(indexed))


@pytest.fixture(scope="session")
def finished(common: Path) -> Path:
    """A run on the embedded model with its evaluation; what spoils it copies it first."""

    def make(folder: Path) -> None:
        train_run(small_config("compressor.ratio=16", "seed=0", f"output={folder / 'run'}"), Progress())

    return once(common / "finished", make) / "run"


@pytest.fixture
def spoilt(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished`, `run` in the test's folder, to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="session")
def generated(common: Path, indexed: Path) -> list[Path]:
    """The folder of a package of each kind, as `stage1 plugins new` writes it."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STAGE1_CACHE", str(indexed))
            for kind, name in GENERATED.items():
                create(name, kind, folder, Progress())

    folder = once(common / "generated", make)
    return [folder / named(name, kind).distribution for kind, name in GENERATED.items()]


@pytest.fixture(scope="session")
def installed(generated: list[Path], common: Path) -> Environment:
    """An environment with stage1, the examples and the generated packages."""

    def make(folder: Path) -> None:
        Environment(folder).build([ROOT, *EXAMPLES, *generated])

    return Environment(once(common / "installed", make))

"""The conformance suites, on components that break one promise each."""

import json
from pathlib import Path
from textwrap import dedent
from typing import Any
from unittest import SkipTest

import pytest

from broken_adapters_losses import BROKEN_ADAPTERS, BROKEN_LOSSES, Decode, LastStates, LLMBySurprise, Squared
from broken_compressors import BROKEN_COMPRESSORS, EntropyCoded, FourBits, Halves, Keep, TrainsInFit
from conftest import Invoke, Result, refused
from plugin_sites import Site, compressor
from stage1.plugins import PluginRecord, load_plugins
from stage1.plugins.interfaces import Adapter, Compressor, Loss
from stage1.testing import AdapterSuite, CompressorSuite, LossSuite, TaskSuite
from stage1.testing.base import Suite
from stage1.testing.component import ComponentSuite, VectorSuite
from stage1.testing.runner import SUITES, check

KINDS = {Compressor: "compressor", Adapter: "adapter", Loss: "loss"}
BUILT_IN = [r for r in load_plugins().components if r.distribution == "stage1" and r.cls and r.kind in SUITES]


def failed_of(record: PluginRecord) -> dict[str, str]:
    """What fails of the plugin's suite: check → message."""
    return {o.check.removeprefix("test_"): o.detail for o in check(record, {}) if o.status == "failed"}


def failures(cls: type[Any]) -> dict[str, str]:
    """The same of a component that nobody installed."""
    kind: Any = next(KINDS[base] for base in cls.__mro__ if base in KINDS)
    record = PluginRecord("broken", kind, "nobody", "1", "", "ok", "", "nobody:broken", cls=cls)
    return failed_of(record)


def name_of(parameter: Any) -> str:
    """A test's identifier: the component's name, and nothing for the rest."""
    return getattr(parameter, "__name__", "")


# -- components that break a promise ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "cls", [Keep, FourBits, Halves, EntropyCoded, TrainsInFit, Decode, Squared, LastStates]
)
def test_an_honest_component_passes(cls: type[Any]) -> None:
    assert failures(cls) == {}


@pytest.mark.parametrize(
    ("cls", "which", "message"), [*BROKEN_COMPRESSORS, *BROKEN_ADAPTERS, *BROKEN_LOSSES], ids=name_of
)
def test_a_broken_component_fails_its_check_alone(cls: type[Any], which: str, message: str) -> None:
    failed = failures(cls)
    assert set(failed) == set(which.split())
    assert message in failed[which.split()[0]]


def test_a_loss_that_reads_the_llm_unasked_is_told_so() -> None:
    assert failures(LLMBySurprise)["needs_llm"].endswith("must say so: needs_llm = True.")


@pytest.mark.parametrize("record", BUILT_IN, ids=lambda record: f"{record.name} {record.kind}")
def test_a_built_in_component_passes(record: PluginRecord) -> None:
    assert failed_of(record) == {}


# -- tasks -------------------------------------------------------------------------------------------------

TASK = """
    task: {name}
    custom_dataset: !function data.questions
    test_split: test
    output_type: {kind}
    doc_to_text: "{prompt}"
    doc_to_target: "{target}"
    process_results: !function data.score
    metric_list:
      - metric: right
        aggregation: {aggregation}
        higher_is_better: {up}
    metadata: {{version: 1}}
"""
DATA = """
    from datasets import Dataset

    def questions(**metadata):
        return {"test": Dataset.from_list([{"q": f"{n} + 1 =", "a": str(n + 1)} for n in range(6)])}

    def score(doc, results):
        return {"right": float(str(results[0]).strip() == doc["a"])}

    def spread(items):
        return max(items) - min(items)
"""


def task_failures(folder: Path, *files: dict[str, str]) -> dict[str, str]:
    """What fails of the suite on a folder with these task files."""
    defaults = {"name": "sums", "kind": "generate_until", "prompt": "{{q}}", "target": "{{a}}"}
    (folder / "data.py").write_text(dedent(DATA), encoding="utf-8")
    for number, file in enumerate(files):
        text = dedent(TASK).format(**{**defaults, "aggregation": "mean", "up": "true", **file})
        (folder / f"{number}.yaml").write_text(text, encoding="utf-8")
    record = PluginRecord("sums", "tasks", "nobody", "1", "", "ok", "", "nobody:sums", folder=folder)
    return failed_of(record)


@pytest.mark.parametrize(
    ("files", "which", "message"),
    [
        ([{}], "", ""),
        ([{}, {"prompt": "{{q}} please"}], "names", "another file also defines the task 'sums'"),
        ([{"prompt": "{{q}} "}], "requests", "the prompt ends in a space"),
        ([{"target": "{{q}}"}], "gold_answers", "the gold answer '0 + 1 =' scores {'right': 0.0}"),
        ([{"up": "false"}], "gold_answers", "higher_is_better"),
        ([{"aggregation": "!function data.spread"}], "standard_errors", "no standard error for"),
    ],
)
def test_tasks(files: list[dict[str, str]], which: str, message: str, tmp_path: Path) -> None:
    failed = task_failures(tmp_path, *files)
    assert set(failed) == ({which} if which else set())
    assert message in failed.get(which, "")


def test_a_folder_without_tasks_fails(tmp_path: Path) -> None:
    (tmp_path / "notes.yaml").write_text("remark: nothing here\n", encoding="utf-8")
    assert "defines a task" in task_failures(tmp_path)["requests"]


# -- suites as authors use them ---------------------------------------------------------------------------


class TestFilled(CompressorSuite):
    """What an author writes; pytest runs it here as it would there."""

    @property
    def component(self) -> type[Compressor]:
        return Keep

    def test_of_the_authors_own(self) -> None:
        """A check beside those of the suite."""


def test_an_authors_own_checks_are_run_too() -> None:
    assert TestFilled.checks() == [*CompressorSuite.checks(), "test_of_the_authors_own"]


@pytest.mark.parametrize(("suite", "first"), [(CompressorSuite, "test_shapes"), (TaskSuite, "test_requests")])
def test_a_suite_whose_property_was_forgotten_fails(suite: Any, first: str) -> None:
    with pytest.raises(NotImplementedError, match=r"^define (component|folder)"):
        getattr(suite(), first)()


def test_every_check_of_a_component_is_one_that_something_fails() -> None:
    """Nothing is looked at that nobody has shown to be worth it."""
    suites: list[tuple[type[Suite], type[Suite], list[tuple[Any, str, str]]]] = [
        (CompressorSuite, Suite, BROKEN_COMPRESSORS),
        (AdapterSuite, VectorSuite, BROKEN_ADAPTERS),
        (LossSuite, ComponentSuite, BROKEN_LOSSES),
    ]
    for suite, shared, broken in suites:
        own = {name.removeprefix("test_") for name in {*suite.checks()} - {*shared.checks()}}
        assert own <= {check for _, which, _ in broken for check in which.split()}


def test_suites_know_nothing_of_pytest() -> None:
    """Authors may run them with another runner, and `plugins check` is there for users."""
    for file in Path(CompressorSuite.checks.__code__.co_filename).parent.glob("*.py"):
        assert "import pytest" not in file.read_text(encoding="utf-8")


# -- stage1 plugins check ----------------------------------------------------------------------------------


@pytest.fixture
def check_cli(site: Site, monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> Invoke:
    """`stage1 plugins check …` with the plugins of the site."""

    def run(*args: str) -> Result:
        monkeypatch.setattr("stage1.plugins.load_plugins", site.load)
        return invoke("plugins", "check", *args)

    return run


def test_the_command_passes_a_good_plugin(check_cli: Invoke) -> None:
    result = check_cli("identity")
    assert result.code == 0
    assert result.out.count("determinism") == 2  # the compressor and the adapter of that name
    assert "0 failed" in result.out


def test_the_command_fails_a_broken_plugin(site: Site, check_cli: Invoke) -> None:
    body = """
        @property
        def code_dim(self):
            print("chatter")
            return self.config.width(self.embed_dim)
    """
    exits = "def fit(self, stats):\n    raise SystemExit('[red]no\x1b')\n"
    site.install(
        "strange", {"narrow": compressor("narrow", body=body), "exits": compressor("exits", body=exits)}
    )
    result = check_cli("strange:narrow")
    assert result.code == 1
    assert "forward returned vectors of width 32, but code_dim says 4" in result.out
    assert "chatter" not in result.out
    report = json.loads(check_cli("narrow", "--json").out)
    assert [plugin["distribution"] for plugin in report] == ["strange"]
    states = {outcome["check"]: outcome["status"] for outcome in report[0]["checks"]}
    assert states["test_code_dim"] == "failed"
    assert states["test_shapes"] == "ok"
    assert set(states) == set(CompressorSuite.checks())
    assert check_cli("narrow", "--set", "ratio=1").code == 0
    stopped = check_cli("exits")  # everything is contained and shown as it is
    assert stopped.code == 1
    assert "SystemExit: [red]no\\u001b" in stopped.out


def test_the_command_shows_where_a_check_failed(
    site: Site, check_cli: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("strange", {"odd": compressor("odd", body="def fit(self, stats):\n    1 / 0\n")})
    assert "ZeroDivisionError: division by zero" in check_cli("odd").out
    assert "strange__odd.py" not in check_cli("odd").out
    monkeypatch.setenv("STAGE1_TRACEBACK", "1")
    assert "strange__odd.py" in check_cli("odd").out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["pac"], "Unknown plugin 'pac'.\nDid you mean 'pca'?"),
        (["pca", "--set", "dmi=3"], "dmi: unknown option. Did you mean 'dim'?"),
        (["pca", "--set", "compressor.dim=3"], "names no option of pca"),
        (["pca", "--set", "dim=0"], "dim: "),
        (["jsonl"], "is of kind events, which has no suite"),
    ],
)
def test_the_command_refuses(args: list[str], message: str, check_cli: Invoke) -> None:
    refused(check_cli(*args), message)


def test_options_without_a_default_are_asked_for(site: Site, check_cli: Invoke) -> None:
    source = compressor("must", body="Config = MustConfig").replace(
        "class Keep",
        "class MustConfig(SizeConfig):\n    must: int = Field(description='Something.')\n\nclass Keep",
    )
    site.install("strange", {"must": source, "broken": "import no_such_module"})
    refused(check_cli("must"), "must: Field required")
    assert check_cli("must", "--set", "must=3").code == 0
    refused(check_cli("broken"), "failed to load: the import failed")


def test_a_check_that_does_not_apply_says_why() -> None:
    record = next(
        r for r in load_plugins().components if r.qualified == "stage1:identity" and r.kind == "adapter"
    )
    skipped = {o.check: o.detail for o in check(record, {}) if o.status == "skipped"}
    assert skipped == {"test_gradients": "it has nothing to train"}
    suite = type("TestSkip", (AdapterSuite,), {"component": record.cls})
    with pytest.raises(SkipTest):  # which every runner of tests understands
        suite().test_gradients()


def test_checking_tasks_says_nothing_but_the_result(invoke: Invoke) -> None:
    """lm-eval warns of a task whenever it loads one."""
    result = invoke("plugins", "check", "tasks")
    assert result.code == 0
    assert [line for line in result.err.splitlines() if not line.startswith("Checking")] == []

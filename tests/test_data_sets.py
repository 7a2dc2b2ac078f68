"""The family of data sets: found, isolated and named like the other plugins; and those of the Hub."""

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from conftest import Invoke
from plugin_sites import Site
from qa_files import load, record
from stage1.config import DataConfig
from stage1.data.datasets import load_qa
from stage1.errors import PluginError, UsageError
from stage1.files import json_lines
from stage1.plugins import load_plugins

HEAD = '''
    """A module of data sets."""
    from qa_files import record
    from stage1 import Dataset, hookimpl
'''


def data_set(name: str, body: str, splits: str = '("test",)') -> str:
    """The source of a plugin with one data set."""
    return dedent(HEAD) + dedent(
        f'''
        class Mine(Dataset):
            """Questions about numbered passages."""
            name = "{name}"
            splits = {splits}
            def records(self, split, at_least):
                {body}

        @hookimpl
        def stage1_datasets():
            return Mine
        '''
    )


@pytest.fixture
def installed(site: Site) -> Any:
    """Install data sets by entry point."""
    return lambda **sources: site.install("numbers", sources)


def test_the_embedded_ones_register_as_any_plugin() -> None:
    registry = load_plugins()
    assert registry.names("dataset") == ["squad", "tiny-squad"]
    assert registry.get("dataset", "stage1:tiny-squad") is registry.get("dataset", "tiny-squad")
    assert registry.owner(registry.get("dataset", "squad")).distribution == "stage1"
    default = DataConfig()
    assert (default.name, len(load_qa(default).test)) == ("tiny-squad", 1200)


@pytest.mark.parametrize(
    ("splits", "sizes"),
    [
        ('("test",)', (32, 4, 4)),
        ('("train", "test")', (36, 4, 40)),
        ('("train", "selection", "test")', (40, 40, 40)),
    ],
)
def test_a_data_set_keeps_its_splits_and_gets_those_that_it_lacks(
    installed: Any, splits: str, sizes: tuple[int, int, int]
) -> None:
    start = '{"train": 0, "selection": 100, "test": 200}[split]'
    body = f"return (record({start} + n) for n in range(40))"
    installed(mine=data_set("numbers", body, splits))
    data = load("numbers", splits=True)
    assert (len(data.train), len(data.selection), len(data.test)) == sizes
    assert data == load("numbers:numbers", splits=True)._replace(name="numbers")


def test_a_data_set_is_told_how_many_questions_are_wanted(installed: Any) -> None:
    body = 'return (record(f"{split}{n}") for n in range(at_least or 3))'
    installed(mine=data_set("numbers", body, '("train", "selection", "test")'))
    data = load("numbers", splits=True, train=7, selection=2)
    assert (len(data.train), len(data.selection), len(data.test)) == (7, 2, 3)


def test_bad_records_are_left_out_as_from_a_file(installed: Any) -> None:
    body = "return [record(n) for n in range(5)] + [record(9, question=''), record(0)]"
    installed(mine=data_set("numbers", body))
    assert load("numbers", splits=True).left_out == {"a blank question": 1, "the id of an earlier one": 1}
    with pytest.raises(UsageError, match="numbers: 2 records left out"):
        load("numbers", splits=True, strict=True)


@pytest.mark.parametrize(
    "body",
    [
        "raise OSError('no disk')",
        "yield record(1); raise OSError('no disk')",
        "import sys; sys.exit('no disk')",
    ],
)
def test_what_a_data_set_raises_is_attributed(installed: Any, body: str) -> None:
    installed(mine=data_set("numbers", body))
    with pytest.raises(PluginError, match=r"'numbers' of numbers 1\.2 raised: .*no disk") as caught:
        load("numbers", splits=True)
    assert "\n" not in str(caught.value)


def test_what_it_says_to_the_user_comes_through(installed: Any) -> None:
    body = "from stage1.errors import UsageError; raise UsageError('It is gated.', 'Log in.')"
    installed(mine=data_set("numbers", body))
    with pytest.raises(UsageError, match=r"^It is gated\.\nLog in\.$"):
        load("numbers", splits=True)


FAULTS = {
    "no class": ("return 7", "which is not a subclass of stage1.Dataset"),
    "another class": ("return dict", "which is not a subclass of stage1.Dataset"),
    "no name": ("return type('D', (Dataset,), {})", "D.name is None"),
    "a path": ("return type('D', (Dataset,), {'name': '../x'})", "D.name is '../x'"),
    "no records": ("return type('D', (Dataset,), {'name': 'd'})", "D does not define records"),
    "splits": ("return type('D', (Mine,), {'name': 'd', 'splits': ('dev',)})", "D.splits is ('dev',)"),
    "splits are a text": ("return type('D', (Mine,), {'name': 'd', 'splits': 'test'})", "D.splits is 'test'"),
    "raises": ("raise OSError('gone')", "stage1_datasets raised: OSError: gone"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_one_is_named_and_harms_no_other(site: Site, fault: str) -> None:
    line, told = FAULTS[fault]
    source = data_set("mine", "return []").replace("return Mine", line)
    site.install("faulty", {"bad": source})
    site.install("well", {"good": data_set("good", "return [record(1)]")})
    registry = site.load()
    [bad] = [record for record in registry.components if record.distribution == "faulty"]
    assert (bad.kind, bad.status) == ("dataset", "failed")
    assert told in bad.reason
    assert registry.names("dataset") == ["squad", "tiny-squad", "good"]


def test_it_is_listed_shown_and_suggested(installed: Any, invoke: Invoke) -> None:
    installed(mine=data_set("numbers", "return [record(1)]"))
    listed = json.loads(invoke("plugins", "list", "--json").out)
    assert {r["name"] for r in listed if r["kind"] == "dataset"} == {"numbers", "squad", "tiny-squad"}
    assert "Questions about numbered passages." in invoke("plugins", "show", "numbers").out
    with pytest.raises(UsageError, match="Unknown dataset 'nubmers'") as caught:
        load("nubmers", splits=True)
    assert "Did you mean 'numbers'" in caught.value.remedy
    assert "Or pass a file" in caught.value.remedy


# --- The Hub ------------------------------------------------------------------------------------------------


def rows(start: int, count: int) -> bytes:
    return json_lines([record(n) for n in range(start, start + count)])


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository as the Hub has it, two configurations in JSON Lines, and `datasets`' cache elsewhere."""
    folder = tmp_path / "acme" / "halls"
    folder.mkdir(parents=True)
    for config, start in (("plain", 0), ("large", 1000)):
        (folder / config).mkdir()
        (folder / config / "train.jsonl").write_bytes(rows(start, 20))
        (folder / config / "validation.jsonl").write_bytes(rows(start + 100, 5))
        (folder / config / "test.jsonl").write_bytes(rows(start + 200, 7))
    card = "configs:\n" + "".join(
        f"- config_name: {config}\n  data_files:\n"
        + "".join(f"  - split: {s}\n    path: {config}/{s}.jsonl\n" for s in ("train", "validation", "test"))
        for config in ("plain", "large")
    )
    (folder / "README.md").write_text(f"---\n{card}---\n")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return folder


def test_a_data_set_of_the_hub_by_configuration_and_split(repository: Path) -> None:
    """Read from a copy of the repository, through the same library and the same code as from the Hub."""
    data = load(str(repository), splits=True, config="plain")
    assert [q.id for q in data.test] == [f"q{n}" for n in range(100, 105)]
    assert (len(data.train), len(data.selection)) == (18, 2)
    assert data.test[0].answers == ("answer 100", "1984")
    other = load(str(repository), splits=True, config="large", split="test")
    assert [q.id for q in other.test] == [f"q{n}" for n in range(1200, 1207)]
    with pytest.raises(UsageError, match="has the configurations large, plain") as caught:
        load(str(repository), splits=True)
    assert "--set data.config=large" in caught.value.remedy
    with pytest.raises(UsageError, match="has no split 'dev'") as caught:
        load(str(repository), splits=True, config="plain", split="dev")
    assert "Choices: test, train, validation" in caught.value.remedy
    with pytest.raises(UsageError, match="Cannot read the data set"):
        load(str(repository), splits=True, config="huge")


def test_a_repository_of_the_hub_is_looked_for_before_it_is_read(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repo: str, **options: Any) -> str:
        asked.append((repo, options["repo_type"], options["revision"]))
        monkeypatch.chdir(repository.parents[1])  # from here on, the name is that of a folder
        return str(repository)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    data = load("acme/halls", splits=True, config="plain", revision="main")
    assert asked == [("acme/halls", "dataset", "main")]
    assert len(data.test) == 5


def test_a_folder_without_data_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="Cannot read the data set") as caught:
        load(tmp_path / "empty")
    assert "\n" not in caught.value.problem

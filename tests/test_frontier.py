"""`stage1 frontier` on the embedded model: closed forms alone and few questions, and what is written."""

import csv
import gzip
import json
import math
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import stage1
from conftest import CtrlC, Invoke, refused, settings_args, small_config
from plugin_sites import Site, compressor
from stage1.errors import TrainingError, UsageError
from stage1.evaluation.rate import marks
from stage1.experiment import train_run
from stage1.files import read_record
from stage1.plugins import Registry
from stage1.reports import frontier as report
from stage1.runs.run import Run
from stage1.session import Session
from stage1.sweeps import rates
from trainings import results_of

QUICK: dict[str, Any] = {
    "data": {"train": 100, "selection": 60},
    "train": {"steps": 0},
    "eval": {"limit": 48, "resamples": 200},
    "adapter": "linear",
}
OVER = {"compressor": ["pca", "random_projection"]}
FINER = 1.6
KEEP = 0.5
"""Of which a claim needs few questions."""


def search(folder: Path, **more: Any) -> stage1.Frontier:
    return stage1.frontier(OVER, keep=KEEP, output=folder, **QUICK, **more)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, stage1.Frontier]]:
    """A whole search among two methods, in coarse steps."""
    folder = tmp_path_factory.mktemp("frontier") / "f"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rates, "FINER", FINER)
        yield folder, search(folder)


@pytest.fixture
def found(searched: tuple[Path, stage1.Frontier]) -> stage1.Frontier:
    return searched[1]


@pytest.fixture
def copied(searched: tuple[Path, stage1.Frontier], tmp_path: Path) -> Path:
    return Path(shutil.copytree(searched[0], tmp_path / "f"))


# -- what is found -----------------------------------------------------------------------------------------


def test_the_border_lies_between_neighbours(found: stage1.Frontier) -> None:
    border = found.border
    assert border.ended == "found"
    assert border.short
    assert border.seems
    assert border.confirmed
    short, seems, confirmed = (found[run] for run in (border.short, border.seems, border.confirmed))
    assert short.rate < seems.rate <= FINER**2 * short.rate
    assert short.selection.f1 < KEEP * short.selection.text_f1
    assert seems.selection.f1 >= KEEP * seems.selection.text_f1
    assert seems.settings["compressor"] == "pca"  # with the same width, random directions keep less
    assert confirmed.rate >= seems.rate
    assert confirmed.test
    assert confirmed.test.f1 > KEEP * confirmed.test.text_f1
    assert confirmed.test.p_keeps <= found.error / 4


def test_the_points_are_the_runs(searched: tuple[Path, stage1.Frontier]) -> None:
    folder, found = searched
    assert [p.bits_per_token for p in found.points] == sorted(p.bits_per_token for p in found.points)
    tested = [point for point in found.points if point.test]
    assert 1 <= len(tested) <= 4
    for point in found.points:
        run = Run(folder / point.run)
        assert run.trained
        assert run.config.compressors[0].name == point.settings["compressor"]
        assert point.rate == 16 * run.config.compressors[0].options["dim"]
    for point in tested:
        results = results_of(folder / point.run)
        rows = {row["row"]: row for row in results["rows"]}
        assert point.test
        assert (point.test.f1, point.test.text_f1) == (rows["bottleneck"]["f1"], rows["text"]["f1"])
        assert point.test.truncated_f1 == rows["truncated"]["f1"]
        assert point.test.f1_ci95 == pytest.approx(rows["bottleneck"]["f1_ci95"])
        assert {"shuffled", "no_context"} <= rows.keys()
        assert point.bits_per_token == pytest.approx(results["rate"]["bits_per_token"], rel=0.05)
    hopeless = [p for p in found.points if p.selection.p_short < 1e-6 and p.selection.n < 48]
    assert hopeless
    assert {p.selection.n for p in hopeless} == {40}


def test_no_cheaper_point_is_as_good_as_one_of_the_frontier(found: stage1.Frontier) -> None:
    for number, point in enumerate(found.points):
        assert point.frontier == all(cheaper.kept < point.kept for cheaper in found.points[:number])


def test_more_bits_than_the_ids_cost_buy_the_whole_text(found: stage1.Frontier) -> None:
    below = [p.selection for p in found.points if p.bits_per_token < 0.5 * found.marks["token_ids"]]
    above = [p.selection for p in found.points if p.bits_per_token > found.marks["token_ids"]]
    assert above
    assert all(asked.truncated_f1 == asked.text_f1 for asked in above)
    assert all(asked.truncated_f1 < asked.text_f1 for asked in below)


def test_the_marks(found: stage1.Frontier) -> None:
    config = small_config("data.train=100", "eval.limit=48")
    session = Session.open(config, stage1.Progress(), weights="table")
    prompts = session.prompts(session.data.test[:5])
    one = marks(prompts, session.table)
    assert one["token_ids"] == found.marks["token_ids"] == math.log2(len(session.table))
    assert one["bf16"] == found.marks["bf16"] == 16 * 256
    tokens = sum(len(prompt.ids) for prompt in prompts)
    assert one["utf8"] == 8 * sum(len(p.text.encode()) for p in prompts) / tokens
    assert one["gzip"] == 8 * sum(len(gzip.compress(p.text.encode(), mtime=0)) for p in prompts) / tokens
    assert found.marks["gzip"] < found.marks["utf8"] < found.marks["bf16"]


def test_what_is_written(searched: tuple[Path, stage1.Frontier]) -> None:
    folder, found = searched
    assert stage1.Frontier.model_validate(read_record(folder / "frontier.json", "")) == found
    lines = list(csv.DictReader((folder / "frontier.csv").read_text().splitlines()))
    assert len(lines) == len(found.points) + sum(point.test is not None for point in found.points)
    first = found.points[0]
    assert float(lines[0]["share"]) == first.selection.share
    assert float(lines[0]["f1_high"]) == first.selection.f1_ci95[1]
    drawing = ElementTree.fromstring((folder / "frontier.svg").read_text())
    labels = [title.text or "" for title in drawing.iter("{http://www.w3.org/2000/svg}title")]
    assert all(any(label.startswith(point.run) for label in labels) for point in found.points)
    assert sum(label.startswith("truncated") for label in labels) == len(found.points)


def test_it_has_a_report(searched: tuple[Path, stage1.Frontier], tmp_path: Path) -> None:
    folder, found = searched
    text = stage1.report(folder, output=tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Border  " in text
    assert "token ids, log₂ of the vocabulary" in text
    assert text.count("falls short") + text.count("keeps it") + text.count("near") >= len(found.points)
    assert text.count("<circle") == 2 * len(found.points)  # bottleneck and truncated


def test_what_is_said(found: stage1.Frontier) -> None:
    said = "\n".join(report.summary(found))
    assert "Marks   bits per token: the text, gzipped " in said
    assert "keeps 50 % of the text F1 at " in said
    assert "error at most 5 %" in said
    assert "the bottleneck does not beat it, and has shown nothing" in said  # by far more bits than ids cost
    nothing = found.model_copy(
        update={"border": report.Border(ended="found", short=None, seems=None, confirmed=None)}
    )
    assert "No setting that was asked is known to keep 50 %" in "\n".join(report.summary(nothing))
    few = found.model_copy(
        update={"passages_needed": 1000, "border": found.border.model_copy(update={"confirmed": None})}
    )
    assert "To confirm anything takes test questions about 1000 passages" in "\n".join(report.summary(few))


# -- going on ----------------------------------------------------------------------------------------------


def test_a_finished_search_is_shown_again(copied: Path, found: stage1.Frontier) -> None:
    times = {path: path.stat().st_mtime_ns for path in copied.rglob("*/*")}
    assert search(copied) == found
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*/*")} == times


@pytest.mark.slow
def test_killed_and_gone_on(tmp_path: Path, found: stage1.Frontier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGE1_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "f"
    with pytest.raises(KeyboardInterrupt, match="Go on with the same `stage1 frontier` command"):
        search(folder, progress=CtrlC("Evaluating bottleneck", 150))
    assert not (folder / "frontier.json").exists()
    begun = len(list(folder.glob("*/bottleneck.json")))
    assert 1 < begun < len(found.points)
    assert search(folder) == found


def test_a_spent_budget_begins_nothing(tmp_path: Path) -> None:
    found = search(tmp_path / "f", budget=0)
    assert (found.points, found.border.ended) == ([], "budget spent")
    assert "The budget is spent; the same command goes on." in "\n".join(report.summary(found))


def test_a_setting_that_fails_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(config: Any, *args: Any, **kwargs: Any) -> Any:
        if config.compressor_names == ["pca"]:
            raise TrainingError("recon became infinite.", "Lower the learning rate.")
        return train_run(config, *args, **kwargs)

    monkeypatch.setattr("stage1.sweeps.frontier.train_run", failing)
    found = search(tmp_path / "f")
    assert found.failed
    assert all("recon became infinite" in error for error in found.failed.values())
    assert {point.settings["compressor"] for point in found.points} == {"random_projection"}
    assert found.border.seems
    assert found[found.border.seems].settings["compressor"] == "random_projection"


# -- requests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--axis", "byte"], "neither bits nor ratio"),
        (["--over", "data.split_seed=0,1"], "asked different questions"),
        (["--set", "compressor.name=identity"], "No option of identity is known to set the bits"),
        (["--set", "compressor.dim=8"], "compressor.dim sets the rate"),
        (["--over", "compressor.dim=8,16"], "compressor.dim sets the rate"),
        (["--keep", "2"], "--keep"),
    ],
)
def test_bad_requests(arguments: list[str], problem: str, invoke: Invoke) -> None:
    done = invoke("frontier", *arguments, "--output", "f")
    refused(done, problem, lines=6 if problem == "--keep" else 2)  # Typer's own check draws a box
    assert not Path("f").exists()


@pytest.mark.usefixtures("copied")
def test_the_command(found: stage1.Frontier, invoke: Invoke) -> None:
    settings = ("data.train=100", "data.selection=60", "train.steps=0", "eval.resamples=200")
    command = ["frontier", "--keep", "0.5", "--over", "compressor=pca,random_projection", "--limit", "48"]
    command += ["--adapter", "linear", *settings_args(settings), "--output", "f"]
    assert stage1.Frontier.model_validate(json.loads(invoke(*command, "--json").printed)) == found
    shown = invoke(*command).out
    assert "Border  " in shown
    assert all(str(round(point.bits_per_token, 1)) in shown for point in found.points)


# -- rates -------------------------------------------------------------------------------------------------

LEVELS = """
class Options(ComponentConfig):
    bits: int = 8

Config = Options
wire_dtype = None

@classmethod
def rates(cls, config, embed_dim):
    return [{"bits": bits} for bits in range(1, 9)]

def bits(self, code):
    return code.mask.float() * self.config.bits * self.embed_dim
"""


@pytest.fixture
def levels(site: Site) -> Registry:
    source = "from stage1 import ComponentConfig\n" + compressor("levels", body=LEVELS)
    site.install("levels", {"point": source})
    return site.load()


def test_rates_of_width(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "FINER", 1.1)
    steps = rates.ladder(small_config(), session.table, "ratio")
    assert (steps[0].options, steps[0].cost) == ({"compressor.dim": 1}, 1)
    assert (steps[-1].options, steps[-1].cost) == ({"compressor.dim": 256}, 256)
    assert all(after.cost >= 1.1 * before.cost for before, after in pairwise(steps[:-1]))
    assert [s.cost for s in rates.ladder(small_config(), session.table, "bits")] == [
        16 * s.cost for s in steps
    ]


def test_rates_that_a_plugin_declares(
    levels: Registry, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "FINER", 1.1)
    monkeypatch.setattr(rates, "load_plugins", lambda: levels)
    monkeypatch.setattr("stage1.bottleneck.bottleneck.load_plugins", lambda: levels)
    alone = small_config("compressor.name=levels")
    assert [step.cost for step in rates.ladder(alone, session.table, "bits")] == [
        256 * b for b in range(1, 9)
    ]
    with pytest.raises(UsageError, match="set the width of its code"):
        rates.ladder(alone, session.table, "ratio")
    chain = small_config("compressors=[identity, {name: levels, bits: 2}]")
    assert rates.ladder(chain, session.table, "bits")[0].options == {"levels.bits": 1}
    both = small_config("compressors=[pca, {name: levels, bits: 2}]")
    steps = rates.ladder(both, session.table, "bits")
    assert (steps[0].options, steps[0].cost, steps[-1].cost) == ({"compressor.dim": 1}, 2, 512)


def test_settings_of_several_methods_at_one_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "FINER", 1.1)
    fine = [rates.Setting({"dim": dim}, 16.0 * dim) for dim in range(1, 11)]
    coarse = [rates.Setting({"bits": bits}, 40.0 * bits) for bits in (1, 2, 4)]
    cheap = [[0, None], [1, None], [1, 0], [2, 0], [3, 0]]  # of 16, 32, 40, 48 and 64 bits
    assert rates.align([fine, coarse]) == [*cheap, [4, 1], [5, 1], [6, 1], [7, 1], [8, 1], [9, 2]]

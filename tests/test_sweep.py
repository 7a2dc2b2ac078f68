"""Sweeps: the grid, its checks, going on, and numbers that are those of the runs."""

import csv
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import SMALL, Invoke, refused, settings_args, small_config
from qa_files import record, written
from stage1.bottleneck.batches import Batch
from stage1.config.presets import RECIPES
from stage1.errors import ConfigError, TrainingError, UsageError
from stage1.evaluation.conditions import NEEDED
from stage1.evaluation.statistics import ClusterBootstrap, Comparison
from stage1.experiment import train_run
from stage1.files import json_lines, read_record
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.sweeps import worker as module
from stage1.sweeps.grid import Axis, Cell, folder_name, label, plan
from stage1.sweeps.sweep import Baseline, Sweep, asked, question_f1
from stage1.training.step import Stepper

FEW = (*SMALL, "data.train=100", "train.steps=4", "train.check_every=4", "train.check_questions=1")
AXES = ("compressor.ratio=4,16", "adapter=linear,residual")
OPTIONS = [
    *(part for axis in AXES for part in ("--over", axis)),
    *("--seeds", "0,1", "--compare", "adapter=linear", "--output", "s"),
    *("--steps", "4"),  # a flag; everything else by --set
    *settings_args([setting for setting in FEW if not setting.startswith("train.steps=")]),
]


def cells_of(folder: Path, *axes: str, seeds: tuple[int, ...] = (0,), file: Any = None) -> list[Cell]:
    return plan(file or {}, FEW, [Axis.parse(text) for text in axes], seeds, folder)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A sweep of 2 × 2 cells and two seeds, by the functions behind the command."""
    folder = tmp_path_factory.mktemp("swept") / "s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGE1_CACHE", str(folder.parent / "cache"))
        cells = cells_of(folder, *AXES, seeds=(0, 1))
        axes = [Axis.parse(text) for text in AXES]
        Sweep(folder, axes, cells, Baseline.parse("adapter=linear", cells)).run(Progress())
        yield folder


@pytest.fixture
def copied(swept: Path, tmp_path: Path) -> Path:
    """The same, for a test to spoil, where `invoke` runs its commands."""
    return Path(shutil.copytree(swept, tmp_path / "s"))


def read(folder: Path) -> dict[str, Any]:
    return read_record(folder / "sweep.json", "")


# -- what a sweep leaves ----------------------------------------------------------------------------------


def test_the_record_holds_every_runs_results(swept: Path) -> None:
    record = read(swept)
    assert record["schema"] == 1
    assert record["axes"] == {"compressor.ratio": [4, 16], "adapter": ["linear", "residual"]}
    assert record["seeds"] == [0, 1]
    assert len(record["cells"]) == 8
    for cell in record["cells"]:
        run = Run(swept / cell["run"])
        assert cell["results"] == run.read_results()
        assert cell["error"] is None
        assert run.config.seed == cell["seed"]
        assert run.config.compressors[0].options["ratio"] == cell["settings"]["compressor.ratio"]
        assert run.config.adapter.name == cell["settings"]["adapter"]
        assert [row["row"] for row in cell["results"]["rows"]] == list(NEEDED)
        assert cell["results"]["verdict"]["level"]
    assert (swept / "ratio=4_adapter=linear_seed=0").is_dir()


def test_the_table_of_runs_agrees(swept: Path) -> None:
    lines = list(csv.DictReader((swept / "sweep.csv").read_text().splitlines()))
    for line, cell in zip(lines, read(swept)["cells"], strict=True):
        rows = {row["row"]: row for row in cell["results"]["rows"]}
        assert line["adapter"] == cell["settings"]["adapter"]
        assert line["compressor.ratio"] == str(cell["settings"]["compressor.ratio"])
        assert line["seed"] == str(cell["seed"])
        assert float(line["f1"]) == rows["bottleneck"]["f1"]
        assert [float(line["f1_low"]), float(line["f1_high"])] == rows["bottleneck"]["f1_ci95"]
        assert float(line["exact_match"]) == rows["bottleneck"]["exact_match"]
        assert float(line["text_f1"]) == rows["text"]["f1"]
        assert float(line["bits_per_token"]) == cell["results"]["rate"]["bits_per_token"]
        assert float(line["recon"]) == cell["results"]["reconstruction"]["recon"]
        unseen = cell["results"]["reconstruction"]["token_recovery_unseen"]
        assert float(line["token_recovery_unseen"]) == unseen
        assert int(line["code_dim"]) == 256 / cell["settings"]["compressor.ratio"]
        sizes = [cell["results"]["size"][part]["parameters"] for part in ("compressor", "adapter")]
        assert int(line["parameters"]) == sum(sizes)
        assert float(line["training_seconds"]) > 0 < float(line["decode_us_per_token"])


def test_averages_and_paired_differences(swept: Path) -> None:
    record = read(swept)
    questions = asked(small_config())
    bootstrap = ClusterBootstrap([q.context for q in questions], 2000, 0)
    assert len(record["averages"]) == 4
    spreads, differences = [], []
    for average in record["averages"]:
        settings = average["settings"]
        name = f"ratio={settings['compressor.ratio']}_adapter={{}}_seed={{}}"
        ours, linear = (
            np.array([question_f1(Run(swept / name.format(adapter, seed)), questions) for seed in (0, 1)])
            for adapter in (settings["adapter"], "linear")
        )
        assert average["seeds"] == [0, 1]
        assert average["f1"] == pytest.approx(ours.mean())
        assert average["f1_spread"] == pytest.approx(abs(ours[0].mean() - ours[1].mean()) / 2**0.5)
        assert average["f1_ci95"] == pytest.approx(bootstrap.interval(ours.mean(0)))
        compared = average["compared"]
        assert compared["f1_difference"] == pytest.approx((ours - linear).mean())
        assert compared["f1_difference_ci95"] == pytest.approx(bootstrap.interval((ours - linear).mean(0)))
        spreads.append(average["f1_spread"])
        differences.append(compared["f1_difference"])
    assert max(spreads) > 0  # or the sums above would say little
    assert max(map(abs, differences)) > 0
    assert differences[0] == 0  # linear against itself


def test_a_single_run_has_the_interval_of_its_results(swept: Path) -> None:
    cells = cells_of(swept, *AXES)
    averages = Sweep(swept, [Axis.parse(text) for text in AXES], cells).record()["averages"]
    for cell, average in zip(cells, averages, strict=True):
        results: Any = cell.run.read_results()
        ours = next(row for row in results["rows"] if row["row"] == "bottleneck")
        assert average["f1"] == pytest.approx(ours["f1"])
        assert average["f1_ci95"] == pytest.approx(ours["f1_ci95"])
        assert average["f1_spread"] is None
        assert "compared" not in average


def test_only_seeds_that_both_have_are_paired() -> None:
    comparison, ones = Comparison(range(6), 50, 0), np.ones(6)
    found = comparison.compared({0: 5 * ones, 1: 3 * ones}, {1: ones, 2: 9 * ones})
    assert found == {"seeds": [1], "f1_difference": 2, "f1_difference_ci95": [2, 2]}
    assert comparison.compared({0: ones}, {1: ones}) is None


# -- the command ------------------------------------------------------------------------------------------


def test_a_finished_sweep_is_shown_again(copied: Path, invoke: Invoke) -> None:
    (copied / ".here-1").touch()  # of a sweep that was killed when all was done
    before = read(copied)
    times = {path: path.stat().st_mtime_ns for path in copied.rglob("results.json")}
    done = invoke("sweep", *OPTIONS)
    assert done.code == 0, done.err
    assert "1 of 8: ratio=4 adapter=linear seed=0: finished already." in done.err
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("results.json")} == times
    assert read(copied) == before
    head, *lines = done.out.splitlines()
    assert head.split() == [
        *("compressor.ratio", "adapter", "runs", "bits/token", "F1", "[95", "%]"),
        *("of", "text", "F1", "spread", "parameters", "F1", "−", "adapter=linear", "[95", "%]"),
    ]
    for line, average in zip(lines, before["averages"], strict=False):
        assert line.split()[:3] == [*map(str, average["settings"].values()), "2"]
        assert f"{average['f1']:.1f}  [{average['f1_ci95'][0]:.1f}" in line
        assert f"{average['f1_spread']:.2f}" in line
        assert f"{average['compared']['f1_difference']:.1f}  [" in line
    assert json.loads(invoke("sweep", *OPTIONS, "--json", "-q").out) == before


def test_interrupted_and_gone_on(
    swept: Path, copied: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-C in the middle of a training, the same command gives what one go gives."""
    missing = [f"ratio=16_adapter=residual_seed={seed}" for seed in (0, 1)]
    for name in missing:
        shutil.rmtree(copied / name)
    own = Stepper.step

    def interrupted(stepper: Stepper, batch: Batch, number: int, *, compare: bool) -> dict[str, Any]:
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return own(stepper, batch, number, compare=compare)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", interrupted)
        first = invoke("sweep", *OPTIONS, "-q")
    assert first.code == 130
    assert "Resume with the same `stage1 sweep` command." in first.err
    assert not (copied / missing[1]).exists()
    second = invoke("sweep", *OPTIONS)
    assert second.code == 0, second.err
    assert second.err.count("finished already") == 6
    assert "Resumed after step 3." in second.err
    assert read(copied) == read(swept)


def test_a_cell_that_fails_stops_no_other(
    copied: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        shutil.rmtree(copied / f"ratio=4_adapter=residual_seed={seed}")

    def failing(config: Any, *args: Any, **kwargs: Any) -> Any:
        if config.seed == 0:
            raise TrainingError("recon became [bold]infinite.", "Lower the learning rate.")
        return train_run(config, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, "train_run", failing)
        done = invoke("sweep", *OPTIONS)
    assert done.code == 1
    assert "1 of 8 runs failed:" in done.out
    assert "ratio=4_adapter=residual_seed=0: recon became [bold]infinite." in done.out
    record = read(copied)
    errors = {cell["run"]: cell["error"] for cell in record["cells"] if cell["error"]}
    assert list(errors) == ["ratio=4_adapter=residual_seed=0"]
    averages = {label(a["settings"]): a for a in record["averages"]}
    assert averages["ratio=4 adapter=residual"]["seeds"] == [1]
    assert averages["ratio=4 adapter=residual"]["compared"]["seeds"] == [1]
    assert "recon became" in (copied / "sweep.csv").read_text()
    assert invoke("sweep", *OPTIONS, "-q").printed
    assert all(cell["error"] is None for cell in read(copied)["cells"])


def test_all_rows_are_asked_where_they_are_missing(copied: Path, invoke: Invoke) -> None:
    one = ["--over", "compressor.ratio=4", "--over", "adapter=linear", "--output", "s", *settings_args(FEW)]
    before = (copied / "ratio=4_adapter=linear_seed=0/bottleneck.safetensors").read_bytes()
    (cell,) = json.loads(invoke("sweep", *one, "--rows", "all", "--json").printed)["cells"]
    names = [row["row"] for row in cell["results"]["rows"]]
    assert names == ["text", "raw", "linear", "bottleneck", "mean", "no_context", "truncated", "shuffled"]
    assert (copied / cell["run"] / "bottleneck.safetensors").read_bytes() == before
    assert "finished already" in invoke("sweep", *one, "--rows", "all").err


# -- the grid ---------------------------------------------------------------------------------------------


def test_values_are_read_like_settings() -> None:
    assert Axis.parse("compressor.ratio=4,8.5") == Axis("compressor.ratio", [4, 8.5])
    assert Axis.parse("raw_anchor=true,false") == Axis("raw_anchor", [True, False])
    assert Axis.parse("losses.kl=auto, 0.5@ramp:200") == Axis("losses.kl", ["auto", "0.5@ramp:200"])
    assert Axis.parse("compressor.dim=null,64") == Axis("compressor.dim", [None, 64])
    assert Axis.parse("losses={recon: 1},{recon: 1, cosine: 0.1}").values[1] == {"recon": 1, "cosine": 0.1}


@pytest.mark.parametrize(
    "text", ["", "compressor.ratio", "=4", "a..b=4", "a=", "a=1,,2", "a=[1", "a=.inf", "a=1,1"]
)
def test_what_is_no_axis(text: str) -> None:
    with pytest.raises(UsageError, match="--over"):
        Axis.parse(text)


def test_every_combination_gets_its_configuration(tmp_path: Path) -> None:
    file = {"compressor": {"name": "pca", "ratio": 2}, "losses": {"recon": 1}}
    axes = ("compressor=pca,random_projection", "losses.cosine=0.1,auto", "scope=context")
    cells = cells_of(tmp_path, *axes, seeds=(3, 4), file=file)
    assert len(cells) == 8
    assert [cell.name for cell in cells[:3]] == [
        "compressor=pca cosine=0.1 scope=context seed=3",
        "compressor=pca cosine=0.1 scope=context seed=4",
        "compressor=pca cosine=auto scope=context seed=3",
    ]
    for cell in cells:
        config = cell.config
        assert config.scope == "context"
        assert config.seed == cell.seed
        assert config.compressors[0].name == cell.settings["compressor"]
        # Another plugin drops the options of the one that the file names, as on the command line.
        assert config.compressors[0].options["ratio"] == (2 if config.compressors[0].name == "pca" else 8)
        assert list(config.losses) == ["recon", "cosine"]
        assert config.losses["cosine"].weight == cell.settings["losses.cosine"]
        assert config.output == cell.run.path


def test_an_option_is_set_behind_every_plugin(tmp_path: Path) -> None:
    """Whatever the order in which the axes are named."""
    cells = cells_of(tmp_path, "compressor.ratio=2,4", "compressor=pca,random_projection")
    made = [(cell.config.compressors[0].name, cell.config.compressors[0].options["ratio"]) for cell in cells]
    assert made == [("pca", 2), ("random_projection", 2), ("pca", 4), ("random_projection", 4)]


def test_a_value_adds_to_what_is_set_for_all(tmp_path: Path) -> None:
    (cell,) = plan({}, ["losses={cosine: 2}"], [Axis.parse("losses.recon=0.5")], [0], tmp_path)
    assert {name: loss.weight for name, loss in cell.config.losses.items()} == {"cosine": 2, "recon": 0.5}


def test_recipes_are_an_axis(tmp_path: Path) -> None:
    first, second = (recipe.name for recipe in RECIPES.all()[:2])
    cells = cells_of(tmp_path, f"recipe={first},{second}")
    for cell, name in zip(cells, (first, second), strict=True):
        wanted = RECIPES.find(name).settings.get("losses", {"recon": 1})
        assert list(cell.config.losses) == list(wanted)
        assert cell.run.path.name == f"recipe={name}_seed=0"
    with pytest.raises(ConfigError, match=r"(?s)recipe=nope seed=0: Unknown recipe 'nope'"):
        cells_of(tmp_path, f"recipe={first},nope")


@pytest.mark.parametrize("command", ["sweep", "frontier"])
def test_a_recipe_of_a_file_is_no_axis_as_well(command: str, invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("recipe: phase1\n")
    done = invoke(command, "own.yaml", "--over", "recipe=phase1,two_phase", "--output", "s")
    refused(done, "recipe is given twice", "no --set, flag or file")
    assert not (tmp_path / "s").exists()


def test_folder_names_are_readable_and_differ() -> None:
    assert (
        folder_name({"compressor.ratio": 8, "recipe": "two_phase", "seed": 1})
        == "ratio=8_recipe=two_phase_seed=1"
    )
    odd = [folder_name({"init": text}) for text in ("runs/a", "runs-a", "runs a", "x" * 300, "x" * 301)]
    assert len(set(odd)) == len(odd)
    assert all("/" not in name and " " not in name and len(name) < 140 for name in odd)
    assert label({"train.lr": 1, "then.train.lr": 2}) == "train.lr=1 then.train.lr=2"


def test_every_bad_cell_is_named_before_anything_is_trained(invoke: Invoke) -> None:
    axes = ("compressor.ratio=0.5,4", "adapter=linear,resdual", "scope=prompt,all")
    over = [part for axis in axes for part in ("--over", axis)]
    refused(
        invoke("sweep", *over, "--output", "s", *settings_args(FEW)),
        "ratio=0.5 adapter=linear scope=prompt seed=0 (and 1 more): compressor.ratio",
        "ratio=0.5 adapter=resdual scope=prompt seed=0 (and 1 more): adapter:",
        "Did you mean 'residual'",
        "ratio=0.5 adapter=linear scope=all seed=0 (and 3 more): scope: 'all'",
        lines=4,
    )
    assert not Path("s").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--over", "seed=1,2"], "Use --seeds"),
        (["--over", "scope=prompt", "--set", "seed=1"], "Use --seeds"),
        (["--over", "scope=prompt", "--seeds", "0,0"], "not different seeds"),
        (["--over", "scope=prompt", "--seeds", "0,x"], "not whole numbers"),
        (["--over", "scope=prompt", "--over", "scope=context"], "scope is given twice"),
        (["--over", "adapter=linear,mlp", "--set", "adapter.name=mlp"], "adapter is given twice"),
        (["--over", "adapter=linear,mlp", "--adapter", "mlp"], "adapter is given twice"),
        (["--over", "protocol=plain,lm-eval", "--protocol", "plain"], "protocol is given twice"),
        (
            ["--over", "scope=prompt,context", "--compare", "scope=all"],
            "Choices: scope=prompt, scope=context.",
        ),
        (["--over", "eval.limit=5,6", "--compare", "eval.limit=5"], "is asked other questions"),
        (["--over", "nothing=1"], "unknown option"),
        (["--over", "scope=prompt", "--on", "locl"], "Did you mean 'local'"),
        (["--over", "scope=prompt", "--rows", "truncate"], "Did you mean 'truncated'"),
    ],
)
def test_bad_requests(arguments: list[str], problem: str, invoke: Invoke) -> None:
    refused(invoke("sweep", *arguments, "--output", "s"), problem)
    assert not Path("s").exists()


def test_seeds_are_asked_the_same_questions_of_a_file_and_split_seeds_are_not(tmp_path: Path) -> None:
    file = written(tmp_path, "own.jsonl", json_lines([record(number) for number in range(40)]))
    first, second = cells_of(tmp_path / "s", "scope=prompt", f"data={file}", seeds=(0, 1))
    assert asked(first.config) == asked(second.config)
    one, other = cells_of(tmp_path / "s", "data.split_seed=0,1", f"data={file}")
    with pytest.raises(UsageError, match="is asked other questions"):
        Baseline.parse("data.split_seed=0", [one, other])


def test_another_grid_does_not_take_over_a_folder(copied: Path, invoke: Invoke) -> None:
    before = sorted(copied.rglob("*"))
    refused(invoke("sweep", *OPTIONS, "--set", "train.lr=0.5"), "holds a run with other settings")
    assert sorted(copied.rglob("*")) == before


def test_predictions_of_other_questions_are_refused(swept: Path) -> None:
    run = Run(swept / "ratio=4_adapter=linear_seed=0")
    questions = asked(run.config)
    assert question_f1(run, questions).shape == (24,)
    with pytest.raises(UsageError, match="answers other questions"):
        question_f1(run, questions[1:])


# -- labels and places ------------------------------------------------------------------------------------


def test_a_ratio_is_called_what_comes_of_it(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, "compressor.ratio=3,100,8000")  # 85, 3 and 1 of 256 dimensions
    assert [cell.name for cell in cells] == ["ratio=3 seed=0", "ratio=85.3 seed=0", "ratio=256 seed=0"]
    assert [cell.run.path.name for cell in cells][2] == "ratio=256_seed=0"
    with pytest.raises(ConfigError, match="It comes to ratio=256 seed=0, as ratio=300 seed=0 does"):
        cells_of(tmp_path, "compressor.ratio=300,8000")


def test_a_second_sweep_leaves_the_first_ones_table(copied: Path) -> None:
    before = (copied / "sweep.json").read_bytes()
    axes = ["compressor.ratio=4", "adapter=linear"]
    for _ in range(2):  # the second time in its own place again
        other = Sweep(copied, [Axis.parse(text) for text in axes], cells_of(copied, *axes))
        other.write()
        assert other.file.name == "sweep-2.json"
    assert (copied / "sweep.json").read_bytes() == before
    assert len(read_record(copied / "sweep-2.json", "")["cells"]) == 1
    assert (copied / "sweep-2.csv").exists()
    grown = [*axes[:1], "adapter=linear,residual"]
    wider = Sweep(copied, [Axis.parse(text) for text in grown], cells_of(copied, *grown, seeds=(0, 1)))
    assert wider.file.name == "sweep-2.json"  # which it has whole

"""Recipes: all of them work with what is installed, and a copy is the recipe."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import Invoke, refused, settings_args
from stage1 import train
from stage1.config import RunConfig, merge, overlay, validate
from stage1.config.presets import RECIPES, Preset
from stage1.errors import UsageError
from stage1.plugins import load_plugins, resolve
from stage1.runs.run import Run

NAMES = ["distill", "distill_answers", "phase1", "phase2", "teacher_forced", "two_phase"]


def configured(recipe: Preset) -> RunConfig:
    return validate(merge(recipe.settings, {}, []))


def test_all_are_there_each_with_a_line_that_says_what_it_does() -> None:
    assert [recipe.name for recipe in RECIPES.all()] == NAMES
    for recipe in RECIPES.all():
        assert recipe.text.startswith(f"# {recipe.summary}\n"), recipe.name
        assert 30 < len(recipe.summary) < 120, recipe.name
    assert "eacher-forced" in RECIPES.find("teacher_forced").summary


@pytest.mark.parametrize("recipe", RECIPES.all(), ids=lambda recipe: recipe.name)
def test_a_recipe_fits_the_installed_plugins_and_leaves_the_choice_of_them_open(recipe: Preset) -> None:
    assert not recipe.settings.keys() & {"compressor", "compressors", "adapter", "model", "data", "output"}
    resolved = resolve(configured(recipe), load_plugins())
    marked = [name for name, loss in resolved.losses.items() if loss.cls.teacher_forced]
    marked += [name for name, loss in resolved.then_losses.items() if loss.cls.teacher_forced]
    assert bool(marked) == (recipe.name in ("teacher_forced", "distill_answers"))


def test_the_second_phase_is_that_of_the_recipe_for_it_alone() -> None:
    both, alone = configured(RECIPES.find("two_phase")), configured(RECIPES.find("phase2"))
    assert both.losses == configured(RECIPES.find("phase1")).losses
    assert both.then is not None
    assert (both.then.losses, both.then.train, both.then.below) == (alone.losses, alone.train, 0.85)


def test_an_unknown_recipe_gets_the_nearest_and_the_list(invoke: Invoke, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'phase1'\?.*two_phase"):
        RECIPES.find("phas1")
    (tmp_path / "a.yaml").write_text("recipe: phas1\n")
    for command in (
        ("train", "--recipe", "phas1"),
        ("config", "show", "a.yaml"),
        ("recipes", "show", "phas1"),
    ):
        refused(invoke(*command), "'phase1'")


# -- precedence ---------------------------------------------------------------------------------------


def test_a_file_names_presets_and_changes_single_settings(invoke: Invoke, tmp_path: Path) -> None:
    def shown(file: str, *args: str) -> Any:
        (tmp_path / "mine.yaml").write_text(file)
        return yaml.safe_load(invoke("config", "show", "mine.yaml", *args).out)

    file = "recipe: phase2\nprotocol: few_shot\ntrain: {lr: 0.5, steps: 7}\nseed: 1\n"
    config = shown(file, "--compressor", "random_projection", "--set", "train.steps=9")
    assert (*config["losses"], config["prompt"]["shots"]) == ("recon", "cosine", "prompt_ppl", 3)
    assert (config["train"]["steps"], config["train"]["lr"], config["train"]["check_every"]) == (9, 0.5, 20)
    assert (config["compressors"][0]["name"], config["seed"]) == ("random_projection", 1)
    assert [*shown(file, "--recipe", "phase1")["losses"]] == ["recon", "cosine"]
    assert [*shown("losses: {cosine: 2}\n", "--recipe", "phase2")["losses"]] == ["cosine"]


@pytest.mark.parametrize(("kind", "name"), [("recipe", "distill"), ("protocol", "few_shot")])
def test_a_recipe_or_protocol_that_a_run_would_override_whole_is_refused(
    invoke: Invoke, finished: Path, kind: str, name: str
) -> None:
    run = str(finished)
    words = (f"{kind} {name!r} is overridden whole", f"--init RUN --{kind} {name}")
    refused(invoke("train", run, f"--{kind}", name, "--output", "new"), *words)
    refused(invoke("sweep", run, "--over", f"{kind}={name}", "--output", "new"), *words)
    assert not Path("new").exists()
    typed: dict[str, Any] = {kind: name}
    with pytest.raises(UsageError, match="is overridden whole"):
        train(finished / "config.yaml", **typed)
    shown = yaml.safe_load(invoke("config", "show", "--init", run, f"--{kind}", name).out)
    assert ("kl" in shown["losses"], shown["prompt"]["shots"]) == (kind == "recipe", 3 * (kind == "protocol"))
    assert shown["compressors"][0]["ratio"] == 16


def test_a_protocol_that_says_what_the_run_does_is_not_refused(invoke: Invoke, finished: Path) -> None:
    shown = invoke("config", "show", str(finished), "--protocol", "plain")
    assert (shown.code, shown.out) == (0, invoke("config", "show", str(finished)).out)


def test_set_reaches_into_the_second_phase(invoke: Invoke) -> None:
    settings = settings_args(["then.train.steps=50", "then.below=0.9", "then.losses.cosine.ramp=5"])
    shown = yaml.safe_load(invoke("config", "show", "--recipe", "two_phase", *settings).out)["then"]
    assert (shown["train"]["steps"], shown["train"]["lr"], shown["below"]) == (50, 3e-4, 0.9)
    assert shown["losses"]["cosine"] == {"weight": "auto", "ramp": 5}
    off = invoke("config", "show", "--recipe", "two_phase", "--set", "then=null")
    assert yaml.safe_load(off.out)["then"] is None


def test_overlaid_sections_are_merged_and_named_plugins_replaced() -> None:
    base = {"compressor": {"name": "pca", "dim": 4}, "train": {"lr": 1, "steps": 2}, "losses": {"recon": 1}}
    over = {"compressor": {"name": "pca"}, "train": {"lr": 3}, "losses": {"cosine": 1}, "seed": 1}
    merged = {key: value for key, value in over.items() if key != "compressor"}
    whole = {**merged, "compressors": [{"name": "pca"}], "train": {"lr": 3, "steps": 2}}
    assert overlay(base, over) == whole
    assert base["train"] == {"lr": 1, "steps": 2}
    assert overlay(base, {"compressor": {"dim": 5}})["compressors"] == [{"dim": 5}]


# -- the commands -------------------------------------------------------------------------------------


def test_recipes_are_listed_and_shown(invoke: Invoke) -> None:
    listed = invoke("recipes").out
    assert all(recipe.name in listed and recipe.summary[:30] in listed for recipe in RECIPES.all())
    assert [entry["name"] for entry in json.loads(invoke("recipes", "--json").out)] == NAMES
    assert invoke("recipes", "show", "two_phase").out == RECIPES.find("two_phase").text


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_gives_the_same_configuration(invoke: Invoke, name: str) -> None:
    done = invoke("recipes", "copy", name)
    assert f"stage1 train {name}.yaml" in done.out
    copied = invoke("config", "show", f"{name}.yaml")
    assert copied.code == 0
    assert copied.out == invoke("config", "show", "--recipe", name).out


def test_copying_overwrites_nothing(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("seed: 3\n")
    refused(invoke("recipes", "copy", "phase1", "mine.yaml"), "mine.yaml exists already")
    assert (tmp_path / "mine.yaml").read_text() == "seed: 3\n"
    refused(invoke("recipes", "copy", "phase1", "no/such/folder.yaml"), "No such file", code=1)


def test_a_run_that_starts_from_another_is_like_it_where_nothing_else_is_said(invoke: Invoke) -> None:
    common = ("--no-eval", "--quiet", "--json", "--set", "train.steps=2", "--set", "data.selection=60")
    own = ("--no-keep-special", "--compressor", "random_projection", "--set", "compressor.ratio=4")
    assert invoke("train", *own, "--set", "data.train=300", "--output", "one", *common).code == 0
    more = ("--init", "one", "--keep-special", "--loss", "cosine", "--adapter", "residual")
    assert invoke("train", *more, "--output", "two", *common).code == 0
    one, two = (Run(Path(name)).config for name in ("one", "two"))
    assert two.init == Path("one").resolve()
    assert (one.keep_special, two.keep_special) == (False, True)
    assert (two.compressors, two.adapter, two.data) == (one.compressors, one.adapter, one.data)
    refused(invoke("train", "--init", "one", "--compressor", "pca", *common), "'random_projection'")
    refused(invoke("train", "--init", "nowhere", *common), "nowhere does not exist")


def test_shell_completion_knows_the_recipes() -> None:
    words = {
        "_STAGE1_COMPLETE": "complete_bash",
        "COMP_WORDS": "stage1 train --recipe ph",
        "COMP_CWORD": "3",
    }
    program = str(Path(sys.executable).with_name("stage1"))
    done = subprocess.run([program], env={**os.environ, **words}, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["phase1", "phase2"], done.stderr

"""The commands that are proposed: whole, quoted, and what they would run is what is meant."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from stage1.cli import app
from stage1.cli.display import end_by
from stage1.config import RunConfig, merge, validate
from stage1.evaluation.evaluate import Evaluation
from stage1.experiment import Outcome
from stage1.plugins import fully_resolved, load_plugins, resolve
from stage1.reports.commands import next_commands, train_command
from stage1.runs.run import Run


def resolved(*settings: str, **flags: Any) -> RunConfig:
    config = validate(merge({}, {key.replace("__", "."): v for key, v in flags.items()}, settings))
    return fully_resolved(config, resolve(config, load_plugins()))


def read_back(command: str, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The configuration that typing `command` would train."""
    words = shlex.split(command)
    assert words[:2] == ["stage1", "train"]
    seen: list[RunConfig] = []

    def keep(config: RunConfig, *_: Any, **__: Any) -> None:
        seen.append(config)
        raise typer.Exit

    monkeypatch.setattr("stage1.experiment.train_run", keep)
    done = CliRunner().invoke(app, words[1:])
    assert seen, done.output
    return fully_resolved(seen[0], resolve(seen[0], load_plugins()))


CASES: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    ((), {}),
    (("compressor.ratio=16", "train.steps=7", "eval.limit=9", "seed=3"), {}),
    (("compressors=[pca, identity]", "compressor.dim=9"), {}),
    (("losses={recon: 1, cosine: '0.5@ramp:20', kl: auto}", "losses.kl.temperature=2"), {}),
    (("scope=context", "raw_anchor=true", "keep_special=false", "magnitude=sent"), {}),
    (("prompt.shots=3", "prompt.stop=['\\n', END]", "data.max_prompt_tokens=300", "dtype=float32"), {}),
    (
        (),
        {"prompt__template": "Text: {context}\nQ: {question} it's\nA:", "prompt__instruction": "Be 'brief'"},
    ),
    ((), {"data__name": "my data/with 'quotes'.json", "model__name": "some folder/model"}),
    (("then={below: 0.8, losses: {kl: 1}}",), {}),
]


@pytest.mark.parametrize(("settings", "flags"), CASES)
def test_a_command_makes_the_run_that_it_stands_for(
    settings: tuple[str, ...], flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolved(*settings, **flags)
    command = train_command(config, load_plugins())
    assert read_back(command, monkeypatch) == config
    if not settings and not flags:
        assert command == "stage1 train"


def results(level: str, text: float = 80.0, needed: int | None = None) -> dict[str, Any]:
    return {
        "rows": [{"row": "text", "f1": text}],
        "size": {"embed_dim": 256},
        "verdict": {"level": level, "questions_needed": needed},
    }


def proposed(tmp_path: Path, level: str, *settings: str, **found: Any) -> list[str]:
    config = resolved(*settings, "train.steps=7").model_copy(update={"output": tmp_path / "my run"})
    return list(next_commands(Run.create(config), results(level, **found)))


def test_what_follows_from_a_verdict(tmp_path: Path) -> None:
    folder = shlex.quote(str(tmp_path / "my run"))
    sound = proposed(tmp_path, "reconstruction suffices", "compressor.ratio=4")
    assert sound == ["stage1 train --steps 7", f"stage1 eval {folder}"]  # 8 is the default


def test_what_was_trained_is_no_start_for_another_width(tmp_path: Path) -> None:
    commands = proposed(tmp_path, "too lossy, or broken", "compressor.ratio=8", "init=runs/before")
    (other,) = [command for command in commands if "--ratio 4" in command]
    assert "--init" not in other


def test_no_ratio_is_proposed_that_the_width_cannot_give(tmp_path: Path) -> None:
    folder = shlex.quote(str(tmp_path / "my run"))
    assert proposed(tmp_path, "reconstruction suffices", "compressor.ratio=8000") == [f"stage1 eval {folder}"]


def test_a_ratio_is_halved_from_what_came_of_it(tmp_path: Path) -> None:
    lossy = proposed(tmp_path, "too lossy, or broken", "compressor.ratio=8000")
    assert lossy[-1] == "stage1 train --ratio 128 --steps 7"


@pytest.mark.parametrize(
    ("level", "found", "first"),
    [
        ("undecided", {"needed": 450}, "stage1 eval RUN --limit 450"),
        ("no ceiling", {"text": 2.0}, "stage1 train --shots 3 --steps 7"),
        ("too lossy, or broken", {}, "stage1 diagnose RUN"),
        ("too lossy, or broken", {"text": 12.0}, "stage1 train --shots 3 --steps 7"),
        ("protocol broken", {}, "stage1 diagnose RUN"),
    ],
)
def test_the_first_thing_to_type(level: str, found: dict[str, Any], first: str, tmp_path: Path) -> None:
    folder = shlex.quote(str(tmp_path / "my run"))
    assert proposed(tmp_path, level, **found)[0] == first.replace("RUN", folder)


def test_a_poor_text_that_has_examples_is_left_alone(tmp_path: Path) -> None:
    commands = proposed(tmp_path, "too lossy, or broken", "prompt.shots=3", text=12.0)
    assert not any("--shots 3" in c and "ratio" not in c for c in commands[:1])
    assert "--ratio 4 --steps 7" in commands[-1]


@pytest.mark.parametrize(
    ("level", "ratio", "below", "code"),
    [
        ("undecided", 0.9, None, None),
        ("undecided", 0.9, 0.85, None),
        ("undecided", 0.84, 0.85, 3),
        ("no ceiling", None, 0.1, 3),
        ("no ceiling", None, None, None),
        ("protocol broken", 0.9, 0.1, 1),
        ("protocol broken", 0.9, None, 1),
    ],
)
def test_the_exit_code_says_what_the_numbers_are_worth(
    level: str, ratio: float | None, below: float | None, code: int | None
) -> None:
    found = Evaluation({"verdict": {"level": level, "ratio": ratio}}, {}, {})
    outcome: Any = Outcome(Run(Path("run")), found, None)  # type: ignore[arg-type]
    if code is None:
        end_by(outcome, below)
        return
    with pytest.raises(typer.Exit) as ended:
        end_by(outcome, below)
    assert ended.value.exit_code == code


def test_short_flags_are_the_settings_that_they_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "stage1 train --ratio 4 --steps 3 --limit 9 --batch-size 2"
    settings = ("compressor.ratio=4", "train.steps=3", "eval.limit=9", "eval.batch_size=2")
    assert read_back(command, monkeypatch) == resolved(*settings)
    assert read_back("stage1 train --dim 32", monkeypatch) == resolved("compressor.dim=32")

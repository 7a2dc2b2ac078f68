"""The commands that are proposed: whole, quoted, and what they would run is what is meant."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
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


@pytest.mark.parametrize(
    ("level", "settings", "found", "expected"),
    [
        ("undecided", (), {"needed": 450}, {0: "stage1 eval RUN --limit 450"}),
        ("no ceiling", (), {"text": 2.0}, {0: "stage1 train --shots 3 --steps 7"}),
        ("protocol broken", (), {}, {0: "stage1 diagnose RUN", -1: "stage1 diagnose RUN"}),
        # The other ratio's run is not begun from what was trained for this one.
        (
            "too lossy, or broken",
            ("init=runs/before",),
            {},
            {0: "stage1 diagnose RUN", -1: "stage1 train --ratio 4 --steps 7"},
        ),
        ("too lossy, or broken", (), {"text": 12.0}, {0: "stage1 train --shots 3 --steps 7"}),
        # A poor text that has examples is left alone.
        ("too lossy, or broken", ("prompt.shots=3",), {"text": 12.0}, {0: "stage1 diagnose RUN"}),
        # Half of what came of the ratio: of 8000, 256.
        ("too lossy, or broken", ("compressor.ratio=8000",), {}, {-1: "stage1 train --ratio 128 --steps 7"}),
        # 8 is the default; more than the width cannot be.
        (
            "reconstruction suffices",
            ("compressor.ratio=4",),
            {},
            {0: "stage1 train --steps 7", 1: "stage1 eval RUN", -1: "stage1 eval RUN"},
        ),
        (
            "reconstruction suffices",
            ("compressor.ratio=8000",),
            {},
            {0: "stage1 eval RUN", -1: "stage1 eval RUN"},
        ),
    ],
)
def test_what_follows_from_a_verdict(
    level: str, settings: tuple[str, ...], found: dict[str, Any], expected: dict[int, str], tmp_path: Path
) -> None:
    folder = tmp_path / "my run"
    run = Run.create(resolved(*settings, "train.steps=7").model_copy(update={"output": folder}))
    proposed = list(next_commands(run, results(level, **found)))
    for place, command in expected.items():
        assert proposed[place] == command.replace("RUN", shlex.quote(str(folder)))


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

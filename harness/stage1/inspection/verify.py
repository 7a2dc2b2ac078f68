"""Whether a run's results can be believed without its author.

Everything that follows from the kept answers is computed again; what the files say is held against each
other, and what lies on this machine (data, model, plugins) against what the run says of it. A checksum finds
an edit by itself; who makes the checksums anew is found by what no longer fits. Whether the LLM ever gave the
answers, only asking it again can tell.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from pydantic import BaseModel

from stage1.bottleneck.checkpoint import read_checkpoint
from stage1.bottleneck.statistics import count_tokens
from stage1.bounded import load_json
from stage1.config import RunConfig
from stage1.data.datasets import TrainedOn, load_qa, spread
from stage1.errors import Stage1Error, UsageError
from stage1.evaluation.evaluate import measure, protocol
from stage1.evaluation.gate import Gate
from stage1.evaluation.summary import graded, marked, summary
from stage1.files import read_bytes, read_record, safe_name
from stage1.llm.hashes import model_sha256
from stage1.llm.location import locate
from stage1.llm.table import load_table, table_sha256
from stage1.plugins import Kind, load_plugins, source_sha256
from stage1.progress import Progress
from stage1.runs.answers import Answer, read
from stage1.runs.run import EVIDENCE, Run
from stage1.session import Session, changed

KINDS: dict[str, Kind] = {"compressors": "compressor", "adapter": "adapter", "losses": "loss"}
"""What a component is, by its part of manifest.json."""
WHOLE = "every file is the one that the results were made of"
State = Literal["holds", "fails", "unknown"]
CLOSE = 1e-9
"""Relative difference of numbers that are the same on another machine."""
CLOSE_TENSORS = 1e-4
"""The same of what is computed in float32."""
SHOWN = 5
"""Problems that a check tells; the others are counted."""


class Check(BaseModel, frozen=True):
    """One thing that was looked at."""

    name: str
    state: State
    claim: str
    """What holds, or should."""
    problems: list[str] = []
    """Why it does not hold, or cannot be known here."""


class Verified(BaseModel, frozen=True):
    """What holds of a run's results, and what only asking again could tell."""

    run: str
    checks: list[Check]
    to_ask: list[str]
    """What does not follow from what is kept."""
    command: str
    """Asks it again."""

    @property
    def holds(self) -> bool:
        """Nothing is wrong; what cannot be known here does not count."""
        return all(check.state != "fails" for check in self.checks)


def verify_run(path: Path, overrides: Mapping[str, Any], progress: Progress) -> Verified:
    """Check a run's results against everything that is there.

    Args:
        path: the run's folder.
        overrides: where model and data lie on this machine, as for `evaluate_run`.
        progress: told what is loaded.

    Raises:
        UsageError: there is no run, or none that was evaluated.
    """
    command = f"stage1 eval {quote(str(path))}"
    try:
        run = Run.open(path)
    except UsageError as error:
        if not os.path.lexists(path / "config.yaml"):
            raise
        damaged = Check(name="files", state="fails", claim=WHOLE, problems=[error.problem])
        return Verified(run=str(path), checks=[damaged], to_ask=["everything"], command=command)
    run.require_trained()
    if not (path / "results.json").is_file():
        raise UsageError(f"{path} has no results.", f"Measure it: {command}")
    verifier = _Verifier(run, overrides, progress)
    return Verified(
        run=str(path),
        checks=list(verifier.checks()),
        to_ask=list(verifier.to_ask()),
        command=command,
    )


class _Verifier:
    """What the checks share: the files as they are, read whatever their checksums say."""

    def __init__(self, run: Run, overrides: Mapping[str, Any], progress: Progress) -> None:
        self.run, self.overrides, self.progress = run, overrides, progress
        self.results = _unsealed(run.path / "results.json")
        self.manifest = _unsealed(run.path / "manifest.json")
        self.config: RunConfig = run.config
        self.answers: dict[str, list[Answer]] = {}

    def checks(self) -> Iterator[Check]:
        """Everything that can be looked at, from the files alone to what needs model and data."""
        yield _checked("files", WHOLE, self._files)
        yield _checked("answers", "every answer has its scores, every row the same questions", self._scores)
        yield _checked("numbers", "the results follow from the answers", self._numbers)
        yield _checked("settings", "results, manifest, checkpoint and configuration agree", self._settings)
        yield _checked("plugins", "the plugins are those of the training", self._plugins, here=True)
        yield _checked("data", "the data here are those that were asked", self._data, here=True)
        yield _checked("model", "the model here is the one that was asked", self._model, here=True)
        yield _checked("rate", "rate and reconstruction are those of these prompts", self._rate, here=True)

    def to_ask(self) -> Iterator[str]:
        """What neither files nor tables can tell."""
        rows = [row for row in self.answers if row != "text"]
        n = len(self.answers.get("text", []))
        yield f"whether the model gives these answers: {n} questions, {len(rows) + 1} rows"
        yield "whether embeddings do what token ids do (the gate)"

    # -- files and numbers -----------------------------------------------------------------------------

    def _files(self) -> Iterator[str]:
        for name in ("results.json", "manifest.json", "data.json"):
            try:
                read_record(self.run.path / name, "")
            except UsageError as error:
                yield error.problem
        rows = [f"predictions/{safe_name(row['row'])}.jsonl" for row in self.results["rows"]]
        for name in (*EVIDENCE, *rows):
            try:
                content = read_bytes(self.run.path / name)
            except OSError as error:
                yield f"{name}: {error.strerror}."
                continue
            if hashlib.sha256(content).hexdigest() != self.results["files"].get(name):
                yield f"{name} is not the one that results.json was made of."

    def _scores(self) -> Iterator[str]:
        for row in self.results["rows"]:
            path = self.run.path / "predictions" / f"{safe_name(row['row'])}.jsonl"
            self.answers[row["row"]] = read(read_bytes(path))
        first = [(answer.id, *answer.asked) for answer in self.answers["text"]]
        for name, answers in self.answers.items():
            if [(answer.id, *answer.asked) for answer in answers] != first:
                yield f"The row {name} is about other questions than the row text."
            for answer in answers:
                for found in _unlike(marked(answer)._asdict(), answer._asdict(), CLOSE):
                    yield f"{name}, question {answer.id!r}: {found}"

    def _numbers(self) -> Iterator[str]:
        kept = self.results
        truncation = {key: kept["questions"][key] for key in ("truncated_prompts", "truncated_tokens")}
        measured = {
            "truncation": truncation,
            **{key: kept[key] for key in ("rate", "reconstruction", "size", "gate")},
        }
        answers = {row: [marked(answer) for answer in given] for row, given in self.answers.items()}
        found = summary(answers, self.config, kept["rows"][0]["task"], measured, kept.get("training"))
        yield from _unlike(found, {key: kept.get(key) for key in found}, CLOSE)
        if kept["gate"]["broken"] != Gate(**{key: kept["gate"][key] for key in Gate._fields}).broken:
            yield "gate.broken does not follow from the gate's numbers."

    # -- what the files say of each other --------------------------------------------------------------

    def _settings(self) -> Iterator[str]:
        config, results, manifest = self.config, self.results, self.manifest
        yield from _unlike(protocol(config), results["protocol"], 0, "protocol")
        for key in ("teacher_forced", "training", "phases"):
            if results.get(key) != manifest.get(key):
                yield f"{key} is not the same in results.json and manifest.json."
        if manifest["seed"] != config.seed:
            yield f"The seed is {config.seed} in config.yaml, {manifest['seed']} in manifest.json."
        record, _ = read_checkpoint(self.run.path)
        if record["table_sha256"] != manifest["hashes"]["embedding_table"]:
            yield "The checkpoint is of another embedding table than manifest.json says."
        parts = [*record["compressors"], record["adapter"]]
        for part, choice in zip(parts, [*config.compressors, config.adapter], strict=True):
            if part["name"] != choice.name.rpartition(":")[2] or part["config"] != choice.options:
                yield f"The checkpoint has another {part['name']} than config.yaml: {choice.name}."
        if record["magnitude"] != config.magnitude:
            yield f"magnitude is {config.magnitude} in config.yaml, {record['magnitude']} in bottleneck.json."
        if manifest["hashes"]["test_questions"] != self._trained_on.test:
            yield "manifest.json and data.json are of different data."

    @property
    def _trained_on(self) -> TrainedOn:
        return TrainedOn(**{key: _unsealed(self.run.path / "data.json")[key] for key in TrainedOn._fields})

    # -- what lies on this machine ---------------------------------------------------------------------

    def _plugins(self) -> Iterator[str]:
        registry, missing = load_plugins(), []
        for part, facts in self.manifest["plugins"].items():
            kind = KINDS[part.partition(".")[0]]
            what = f"the {kind} {facts['name']} of {facts['distribution']} {facts['version']}"
            name = registry.qualified(kind, facts["name"], facts["distribution"])
            if name is None:
                missing.append(what)
            elif source_sha256(registry.get(kind, name)) != facts["source_sha256"]:
                yield f"The source of {what} has changed since the training."
        if missing:
            raise Stage1Error(f"not installed: {', '.join(missing)}.")

    def _data(self) -> Iterator[str]:
        there, known = load_qa(self.here.data), self._trained_on
        if there.content != known.content:
            yield f"{there.name} is not what the run was trained and asked on."
        elif there.sha256 != known.test:
            yield f"The test questions of {there.name} are not those of the run."
        questions = {question.id: question for question in there.test}
        for answer in self.answers["text"]:
            question = questions.get(answer.id)
            if question is None:
                yield f"The question {answer.id!r} is not in {there.name}."
            elif graded(question, "", cut=False).asked != answer.asked:
                yield f"The question {answer.id!r} has another text, passage or gold answers in {there.name}."

    def _model(self) -> Iterator[str]:
        settings = self.here.model
        folder, trust = self._model_folder(), settings.trust_remote_code
        if table_sha256(load_table(folder, trust)) != self.manifest["hashes"]["embedding_table"]:
            yield f"{settings.name} has other embeddings than the run's model."
        if model_sha256(folder, trust) != self.results["model"]["sha256"]:
            yield f"{settings.name} is not the model that answered."

    def _rate(self) -> Iterator[str]:
        self._model_folder()  # or it would be downloaded
        session = Session.open(self.here, self.progress, weights="table", trained_on=self._trained_on)
        questions = spread(session.data.test, self.here.eval.limit)
        if [question.id for question in questions] != [answer.id for answer in self.answers["text"]]:
            yield f"The run's configuration asks {len(questions)} questions that are not those answered."
            return
        prompts, bottleneck = session.prompts(questions), session.load_bottleneck(self.run)
        found = measure(bottleneck, session, prompts, count_tokens(prompts, session.table))
        truncation = found.pop("truncation")
        yield from _unlike(found, {key: self.results[key] for key in found}, CLOSE_TENSORS)
        yield from _unlike(
            truncation, {key: self.results["questions"][key] for key in truncation}, 0, "questions"
        )

    def _model_folder(self) -> Path:
        return locate(self.here.model, weights="all", progress=self.progress, download=False)

    @cached_property
    def here(self) -> RunConfig:
        """The run's configuration with model and data where they lie on this machine."""
        return changed(self.run, self.overrides)


def _checked(name: str, claim: str, look: Callable[[], Iterator[str]], *, here: bool = False) -> Check:
    """What `look` finds; with `here`, what cannot be loaded is not known instead of wrong."""
    problems: list[str] = []
    known = True
    try:
        problems.extend(look())
    except Stage1Error as error:
        known = bool(problems) or not here
        problems.append(str(error))
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        problems.append(f"The files lack something: {type(error).__name__} {error}.")
    state: State = "holds" if not problems else "fails" if known else "unknown"
    more = len(problems) - SHOWN
    if more > 0:
        problems[SHOWN:] = [f"… and {more} more."]
    return Check(name=name, state=state, claim=claim, problems=problems)


def _unsealed(path: Path) -> dict[str, Any]:
    """A record, whatever its checksum says; empty where there is none."""
    try:
        record = load_json(read_bytes(path))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _unlike(found: Any, kept: Any, tolerance: float, path: str = "") -> Iterator[str]:
    """Where `kept` is not what was `found`, by the path of its parts."""
    if isinstance(found, dict) and isinstance(kept, dict):
        for key in dict.fromkeys([*found, *kept]):
            yield from _unlike(found.get(key), kept.get(key), tolerance, f"{path}.{key}".lstrip("."))
    elif isinstance(found, list) and isinstance(kept, list) and len(found) == len(kept):
        for number, pair in enumerate(zip(found, kept, strict=True)):
            name = found[number]["row"] if path == "rows" else f"{path}[{number}]"
            yield from _unlike(*pair, tolerance, name)
    elif not _same(found, kept, tolerance):
        yield f"{path} is {kept!r} and should be {found!r}."


def _same(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    return bool(one == other)

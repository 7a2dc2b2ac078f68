"""`stage1 frontier`: the smallest rate at which a bottleneck keeps a share of the text F1.

    FOLDER/ frontier.json  frontier.csv  frontier.svg  answers.json  <setting>/ (a run's folder)  …

The search (`stage1.sweeps.search`) asks selection questions; what it found is confirmed on test questions,
which chose nothing. The runs and answers.json are the state: the same call goes on where it was stopped.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stage1.bottleneck.statistics import count_tokens
from stage1.data.datasets import spread
from stage1.data.records import Question
from stage1.errors import Stage1Error, UsageError
from stage1.evaluation.answers import Answering
from stage1.evaluation.conditions import NEEDED, conditions
from stage1.evaluation.evaluate import task_name
from stage1.evaluation.rate import marks, rate
from stage1.evaluation.statistics import ClusterBootstrap, Floats
from stage1.experiment import train_run
from stage1.files import default_cache, make_output, read_record, to_csv, write_atomic, write_record
from stage1.progress import Progress
from stage1.reports.figures import frontier as figure
from stage1.reports.frontier import Border, Frontier, Measured, Point, table
from stage1.reports.svg import standalone
from stage1.runs.journal import sha256
from stage1.runs.run import Run
from stage1.session import Session
from stage1.sweeps.grid import Axis, Cell, plan
from stage1.sweeps.rates import Axis as RateAxis
from stage1.sweeps.rates import Setting, align, ladder
from stage1.sweeps.search import Budget, BudgetSpentError, Rule, Sample, Search, confirm, p_keeps, p_short
from stage1.sweeps.sweep import finished

SAME = {"model", "data", "prompt", "eval", "dtype"}
"""Settings that methods must share: they say what is asked, and of whom."""

TESTED = (*NEEDED, "truncated", "shuffled")
"""The rows of a confirmation."""


class Request(NamedTuple):
    """What is searched.

    Attributes:
        folder: where runs and results go; None: a place under `runs/`, the same for the same request.
        file: settings of every method, as a configuration file holds them.
        flags: dotted path → value of what was typed for every method.
        settings: `--set` texts for every method.
        over: what methods differ in; every combination is one.
        keep: the share of the text F1, above 0 and at most 1.
        axis: what a rate is.
        minutes: the budget; None: as many as it takes.
        seed: of every run.
    """

    folder: Path | None
    file: Mapping[str, Any]
    flags: Mapping[str, Any]
    settings: Sequence[str]
    over: Sequence[Axis]
    keep: float = 0.95
    axis: RateAxis = "bits"
    minutes: float | None = None
    seed: int = 0

    @property
    def place(self) -> Path:
        """Where runs and results go."""
        asked = self._replace(folder=None, minutes=None)
        return self.folder or Path("runs", f"frontier-{sha256(asked)[:8]}")

    def methods(self) -> list[list[Axis]]:
        """Each method as axes of one value."""
        values = product(*(axis.values for axis in self.over))
        keys = [axis.key for axis in self.over]
        return [[Axis(k, [v]) for k, v in zip(keys, chosen, strict=True)] for chosen in values]

    def cell(self, method: Sequence[Axis], setting: Setting | None = None) -> Cell:
        """A method, at one of its rates, as a run with a folder of its own.

        Raises:
            UsageError: it is no valid configuration, or its folder holds another run.
        """
        options = setting.options if setting else {}
        typed = {text.partition("=")[0].strip() for text in self.settings} | {axis.key for axis in method}
        if twice := next((key for key in options if key in typed | self.flags.keys()), None):
            raise UsageError(
                f"{twice} sets the rate, which is searched for.",
                "Leave it out. Where the rates follow from it, write it with the compressor's name: "
                "--set 'compressors=[{name: rvq, bits: 10}]'.",
            )
        axes = [*method, *(Axis(key, [value]) for key, value in options.items())]
        [cell] = plan(self.file, self.settings, axes, [self.seed], self.place, flags=self.flags)
        return cell


class Explorer:
    """Trains and asks what the search wants to know, and keeps it.

    Raises:
        UsageError: the methods are no valid configurations, have no rate, or are asked different questions;
            the folder holds something else. Nothing is written then.
    """

    def __init__(self, request: Request, progress: Progress) -> None:
        self.request, self.progress = request, progress
        self.budget = Budget(request.minutes)
        methods = request.methods()
        configs = [request.cell(method).config for method in methods]
        if any(c.model_dump(include=SAME) != configs[0].model_dump(include=SAME) for c in configs):
            raise UsageError(
                "The methods are asked different questions, or are of different models.",
                f"Leave {', '.join(sorted(SAME))} out of --over.",
            )
        self.session = Session.open(configs[0], progress)
        with progress.task("Reading the methods' rates"):
            self.ladders = [ladder(config, self.session.table, request.axis) for config in configs]
        self.cells = align(self.ladders)
        self.planned = [
            [request.cell(method, setting) for setting in steps]
            for method, steps in zip(methods, self.ladders, strict=True)
        ]
        data, limit = self.session.data, configs[0].eval.limit
        self.selection = _in_turn(data.selection, request.seed)[:limit]
        self.test = spread(data.test, limit)
        self.rule = Rule(request.keep, most=len(self.selection))
        self.answers = self._known_answers()
        self.errors: dict[str, str] = {}
        self.tested: dict[str, tuple[Sample, Floats]] = {}  # run → its answers, and those of `truncated`

    @property
    def _store(self) -> Path:
        return self.request.place / "answers.json"

    def _known_answers(self) -> dict[str, Any]:
        questions = sha256([question.id for question in self.selection])
        if not self._store.exists():
            return {"questions": questions, "text": [], "cells": {}}
        known = read_record(self._store, "Remove it: the questions are asked again.")
        if known["questions"] != questions:
            raise UsageError(f"{self._store} answers other questions.", "Use another --output.")
        return known

    # -- what the search asks ------------------------------------------------------------------------------

    def run(self) -> Frontier:
        """Search, confirm, and write what was found, after every step.

        Raises:
            KeyboardInterrupt: the same call goes on.
        """
        make_output(self.request.place)
        search, confirmed, ended = Search(self.cells, self.measure, self.rule), None, "found"
        try:
            try:
                search.run()
            except BudgetSpentError:
                ended = "budget spent"
            self.budget.share = 1.0
            candidates = search.candidates()
            if self._confirmable > len({question.context for question in self.test}):
                candidates = islice(candidates, 1)  # it is measured all the same
            confirmed = confirm(candidates, self.try_out, self.rule)
        except BudgetSpentError:
            ended = "budget spent"
        except KeyboardInterrupt:
            raise KeyboardInterrupt("Go on with the same `stage1 frontier` command.") from None
        return self._write(search, confirmed, ended)

    @property
    def _confirmable(self) -> int:
        """Passages of test questions that a confirmation takes, by the text's F1 of what was asked so far."""
        return self.rule.confirmable(np.mean(self.answers["text"]) if self.answers["text"] else 100.0)

    def measure(self, method: int, number: int, questions: int) -> Sample:
        """Answers to the first selection questions at a method's setting; what is known is not asked again.

        A setting that cannot be trained keeps nothing.

        Raises:
            BudgetSpentError: it is not known, and no time is left to ask.
        """
        cell = self.planned[method][number]

        def known() -> Sample | None:
            f1 = self.answers["cells"].get(cell.run.path.name, {}).get("f1", [])
            if len(f1) < questions:
                return None
            return _sample(f1[:questions], self.answers["text"][:questions], self.selection)

        def step() -> Sample:
            try:
                self._ask(cell, questions)
            except Stage1Error as error:
                self.errors[cell.name] = str(error)
                self.progress.note(f"{cell.name} failed: {error}")
            return known() or _sample(np.zeros(questions), np.full(questions, 100.0), self.selection)

        return known() or self.budget.spend(step)

    def _train(self, cell: Cell, begun: Run | None, **how: Any) -> None:
        session = self.session
        train_run(cell.config, self.progress, resume=begun, session=session, same_questions=True, **how)

    def _ask(self, cell: Cell, wanted: int) -> None:
        """Train the cell where that is not done, ask the questions that are new, and keep the answers."""
        begun = Run.begun(cell.run.path)
        if begun is None or not begun.trained:
            self.progress.note(cell.name)
            self._train(cell, begun, with_evaluation=False)
        session = self.session.under(cell.config)
        bottleneck = session.load_bottleneck(cell.run)
        name = cell.run.path.name
        if name not in self.answers["cells"]:
            prompts = session.prompts(self.selection)
            measured = rate(bottleneck, prompts, count_tokens(prompts, session.table), session.table)
            bits = measured["bits_per_token"]
            self.answers["cells"][name] = {"bits_per_token": bits, "f1": [], "truncated": []}
        kept = self.answers["cells"][name]
        known = len(kept["f1"])
        questions, text = self.selection[known:wanted], self.answers["text"]
        prompts = session.prompts(questions)
        stats, answering = count_tokens(prompts, session.table), Answering(session, default_cache())
        f1 = {"text": text[known:wanted]}
        rows = ("bottleneck", "truncated", *(["text"] if len(text) < wanted else []))
        for condition in conditions(bottleneck, session, stats, questions, prompts, rows):
            if condition.known is None:
                f1[condition.name] = answering.f1(condition, questions).tolist()
        text[known:wanted] = f1["text"]
        kept["f1"] += f1["bottleneck"]
        kept["truncated"] += f1.get("truncated", f1["text"])  # it is the text where all of it is paid for
        write_record(self._store, self.answers)

    def try_out(self, method: int, number: int) -> Sample:
        """Answers to the test questions at a method's setting, whose run is evaluated where it is not.

        Raises:
            BudgetSpentError: no time is left to ask.
        """
        cell = self.planned[method][number]
        selection = self.measure(method, number, self.rule.looks[0])  # for the table and the figure
        if cell.name in self.errors:
            return selection

        def step() -> Sample:
            self.progress.note(f"{cell.name}: test questions")
            self._train(cell, cell.run, rows=TESTED)
            return self._tested(cell)

        return self._tested(cell) if finished(cell.run, TESTED) else self.budget.spend(step)

    def _tested(self, cell: Cell) -> Sample:
        f1 = {
            row: np.array([answer.f1 for answer in cell.run.read_answers(row)])
            for row in ("text", "bottleneck", "truncated")
        }
        sample = _sample(f1["bottleneck"], f1["text"], self.test)
        self.tested[cell.run.path.name] = sample, f1["truncated"]
        return sample

    # -- what came of it -----------------------------------------------------------------------------------

    def _write(self, search: Search, confirmed: tuple[int, int] | None, ended: str) -> Frontier:
        """What is known now, written."""
        points = sorted(self._points(), key=lambda point: (point.bits_per_token, -point.kept))
        best = -math.inf
        for point in points:  # what no cheaper one equals
            point.frontier = point.kept > best
            best = max(best, point.kept)
        record = Frontier(
            model=self.session.config.model.name,
            data=task_name(self.session),
            keep=self.request.keep,
            error=self.rule.error,
            passages=len({question.context for question in self.test}),
            passages_needed=self._confirmable,
            axis=self.request.axis,
            marks=self._marks(),
            points=points,
            border=Border(
                ended=ended,
                short=self._run(search.winners.get(search.low)),
                seems=self._run(search.winners.get(search.high)),
                confirmed=self._run(confirmed),
            ),
            failed=self.errors,
        )
        folder = self.request.place
        write_record(folder / "frontier.json", record.model_dump(mode="json"))
        write_atomic(folder / "frontier.csv", to_csv(table(record)).encode())
        write_atomic(folder / "frontier.svg", standalone(figure(record)))
        return record

    def _run(self, cell: tuple[int, int] | None) -> str | None:
        return cell and self.planned[cell[0]][cell[1]].run.path.name

    def _points(self) -> Iterator[Point]:
        width = self.session.table.shape[1]
        for cells, steps in zip(self.planned, self.ladders, strict=True):
            for cell, setting in zip(cells, steps, strict=True):
                if (kept := self.answers["cells"].get(cell.run.path.name)) is None or not kept["f1"]:
                    continue
                n = len(kept["f1"])
                sample = _sample(kept["f1"], self.answers["text"][:n], self.selection)
                test = self.tested.get(cell.run.path.name)
                yield Point(
                    run=cell.run.path.name,
                    settings=cell.settings,
                    rate=width / setting.cost if self.request.axis == "ratio" else setting.cost,
                    bits_per_token=kept["bits_per_token"],
                    selection=self._measured(sample, np.array(kept["truncated"])),
                    test=self._measured(*test) if test else None,
                )

    def _measured(self, sample: Sample, truncated: Floats) -> Measured:
        resamples = self.session.config.eval.resamples
        bootstrap = ClusterBootstrap(sample.passages.tolist(), resamples, self.request.seed)
        text = float(sample.text.mean())

        def share(f1: Floats) -> float | None:
            return float(f1.mean()) / text if text else None

        return Measured(
            n=len(sample.f1),
            f1=float(sample.f1.mean()),
            f1_ci95=bootstrap.interval(sample.f1),
            text_f1=text,
            share=share(sample.f1),
            share_ci95=bootstrap.ratio_interval(sample.f1, sample.text),
            p_keeps=p_keeps(sample, self.request.keep),
            p_short=p_short(sample, self.request.keep),
            truncated_f1=float(truncated.mean()),
            truncated_share=share(truncated),
            truncated_share_ci95=bootstrap.ratio_interval(truncated, sample.text),
        )

    def _marks(self) -> dict[str, float]:
        config = self.session.config
        alone = config.prompt.model_copy(update={"shots": 0, "chat": False, "instruction": ""})
        session = self.session.under(config.model_copy(update={"prompt": alone}))
        return marks(session.prompts(self.test), session.table)


def _sample(f1: Any, text: Any, questions: Sequence[Question]) -> Sample:
    passages: dict[str, int] = {}
    about = [passages.setdefault(q.context, len(passages)) for q in questions[: len(f1)]]
    return Sample(np.array(f1), np.array(text), np.array(about))


def _in_turn(questions: Sequence[Question], seed: int) -> list[Question]:
    """The questions in an order of which every beginning is spread over the passages."""
    by_passage: dict[str, list[Question]] = {}
    for question in questions:
        by_passage.setdefault(question.context, []).append(question)
    passages = list(by_passage.values())
    order = np.random.default_rng(seed).permutation(len(passages))
    rounds = range(max(map(len, passages), default=0))
    return [passages[i][turn] for turn in rounds for i in order if turn < len(passages[i])]

"""What a report says of one run, from its folder alone."""

import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from stage1.config import RunConfig, flat, format_setting, settings_of
from stage1.files import read_record
from stage1.reports.html.page import number
from stage1.reports.html.questions import Asked
from stage1.reports.report import interval, placeless
from stage1.runs.run import Run

STAGES = ("text", "raw", "linear", "bottleneck")
"""The way of F1: what the LLM receives at each step of it."""


class Facts(NamedTuple):
    """A trained run's files, read."""

    name: str  # the folder's, without where it lies
    config: RunConfig
    results: dict[str, Any] | None  # None: not evaluated
    manifest: dict[str, Any]
    diagnosis: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    times: dict[str, Any]

    @classmethod
    def of(cls, run: Run) -> "Facts":
        """Read them.

        Raises:
            UsageError: the run is not trained, or a file of it is damaged.
        """
        run.require_trained()
        results, manifest, config = run.read_results(), run.read_manifest(), run.config
        name, diagnosis = run.path.resolve().name, None
        if os.path.lexists(place := run.path / "diagnosis.json"):
            diagnosis = read_record(place, "Remove it: a report may be without.")
            for finding in diagnosis["findings"]:
                finding["command"] = (finding["command"] or "").replace(str(diagnosis["run"]), name)
        times, data = run.read_timings().get("time", {}), config.data.name
        for time in times.values():
            shares = time["shares"].items()
            time["shares"] = [
                (work.replace(data, placeless(data)), number(100 * share)) for work, share in shares
            ]
        return cls(name, config, results, manifest, diagnosis, run.metrics(), times)

    @property
    def row(self) -> dict[str, Mapping[str, Any]]:
        """Row → its numbers; empty before an evaluation."""
        return {row["row"]: row for row in self.results["rows"]} if self.results else {}

    @property
    def rate(self) -> Mapping[str, float]:
        """What the prompts cost; empty before an evaluation."""
        return self.results["rate"] if self.results else {}

    @property
    def teacher_forced(self) -> bool:
        """Whether a loss saw the gold answers: such results do not compare with others."""
        return bool(self.manifest.get("teacher_forced"))

    def settings(self) -> dict[str, str]:
        """The configuration by dotted path, but for where something lies."""
        return {
            key: format_setting(value if key.startswith("prompt.") else placeless(value))
            for key, value in settings_of(self.config).items()
            if key != "init" and value is not None
        }

    def provenance(self) -> Iterator[tuple[str, str]]:
        """The manifest, a line for each entry."""
        for key, value in flat(self.manifest).items():
            if value is not None:
                yield key, format_setting(value)

    def losses(self, asked: Asked) -> Iterator[tuple[str, str, str]]:
        """F1 from stage to stage: each paired difference, with its interval."""
        bootstrap = asked.bootstrap(self.config.eval.resamples, self.config.seed)
        for before, after in pairwise(name for name in STAGES if name in self.row):
            change = asked.f1(after) - asked.f1(before)
            yield before, after, interval(float(change.mean()), bootstrap.interval(change))

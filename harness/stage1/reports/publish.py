"""A run on the Hub: what is published of it, without the places of this machine, and how it gets there."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from stage1.bottleneck.checkpoint import republished
from stage1.config import RunConfig, validate
from stage1.errors import UsageError
from stage1.reports.figures import rows
from stage1.reports.report import HEADER, TEACHER_FORCED, cells, placeless, summary
from stage1.reports.svg import standalone
from stage1.runs.run import Run, seal
from stage1.text import one_line, visible_lines

KEPT = ("bottleneck.safetensors", "manifest.json", "results.json")
"""Files that are published as they are; predictions stay at home, they quote the data set."""

FIGURE = "rows.svg"
"""The figure of the model card."""


def published(run: Run, repo_id: str) -> dict[str, bytes]:
    """The files of a trained run as they are published: name → content, the model card as README.md.

    Folders of this machine are left out of them: model, data and files in plugins' options keep the last part
    of their path; the model is known by the hash of its embedding table, the data by that of the questions.

    Raises:
        UsageError: it is not trained, one of its files is damaged, or `repo_id` is no repository's name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(f"{repo_id!r} is not a repository id: {error}", "Write it as owner/name.") from None
    run.require_trained()
    config = validate(_cleaned(run.config.model_dump(mode="json", exclude={"init", "output"})))
    files = {
        "README.md": _card(config, run, repo_id).encode(),
        "config.yaml": seal(config.to_yaml()),
        "bottleneck.json": republished(run.path, _cleaned),
    }
    if (results := run.read_results()) is not None:
        files[FIGURE] = standalone(rows(results))
    there = [name for name in KEPT if (run.path / name).is_file()]
    return files | {name: (run.path / name).read_bytes() for name in there}


def push(run: Run, repo_id: str, *, private: bool) -> str:
    """Upload a trained run with a model card to the Hub; returns its address.

    Raises:
        UsageError: as `published`; not logged in, no right to write, or no network.
    """
    from huggingface_hub import HfApi

    files = published(run, repo_id)
    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            api.upload_folder(folder_path=folder, repo_id=repo_id)
    except Exception as error:  # the client's own, its HTTP library's and the system's have no common base
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"Cannot publish to {repo_id}: {reason}", "Log in with `hf auth login`, and check the network."
        ) from None
    return str(address)


WITH_PLACES = ("model", "data", "compressors", "adapter", "losses", "then")
"""Sections of a configuration and of a checkpoint that may name files, as plugins' options do."""


def _cleaned(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with the last part alone of every path in `WITH_PLACES`."""
    return {key: _known(value) if key in WITH_PLACES else value for key, value in tree.items()}


def _known(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _known(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_known(inner) for inner in value]
    return placeless(value)


def _card(config: RunConfig, run: Run, repo_id: str) -> str:
    results, manifest = run.read_results(), run.read_manifest()
    head: dict[str, Any] = {"library_name": "stage1", "tags": ["stage1", "embedding-compression"]}
    if "/" in config.model.name:
        head["base_model"] = config.model.name
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).rstrip(),
        "---",
        "",
        f"# {'+'.join(config.compressor_names)} → {config.adapter.name}, for {_code(config.model.name)}",
        "",
        "A bottleneck for the input embeddings of a frozen LLM, trained and measured with stage1.",
        "",
        "```python",
        "from stage1 import Bottleneck",
        "",
        f'bottleneck = Bottleneck.from_pretrained("{repo_id}")',
        "```",
        "",
    ]
    if manifest.get("teacher_forced"):
        lines += [f"**{TEACHER_FORCED}**", ""]
    if results is not None:
        said = (f"- {_plain(line)}" for line in summary(results))
        picture = [f"![F1 of every row, with its 95 % interval]({FIGURE})", ""]
        lines += ["## Results", "", *picture, *_table(results), "", *said]
        lines += ["", f"Data: {_code(config.data.name)}, seed {config.seed}.", ""]
    lines += ["## Configuration", "", *_fenced(config.to_yaml().rstrip(), "yaml"), ""]
    versions = ", ".join(f"{name} {number}" for name, number in manifest.get("versions", {}).items())
    return visible_lines("\n".join([*lines, f"Versions: {_plain(versions)}.", ""]))


def _table(results: Mapping[str, Any]) -> list[str]:
    """The rows as Markdown."""
    lines = [HEADER, ["---"] * len(HEADER), *cells(results)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _code(text: str) -> str:
    """`text` as code, which Markdown does not read."""
    return f"`{one_line(text).replace('`', chr(39))}`"


def _plain(text: str) -> str:
    """`text` in which a reader of Markdown finds no HTML and no link."""
    return one_line(text).replace("<", "&lt;").replace("](", "] (")


def _fenced(text: str, language: str) -> list[str]:
    """A block of code; its fence is longer than any in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [f"{fence}{language}", text, fence]

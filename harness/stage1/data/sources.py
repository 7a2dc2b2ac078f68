"""Where questions come from: a plugin's data set, a file, or a data set on the Hub, by what is typed."""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stage1.config import DataConfig
from stage1.data.formats import FORMATS, is_data_file, read_rows
from stage1.data.layouts import flat_rows
from stage1.data.records import Records, check_rows
from stage1.errors import PluginError, Stage1Error, UsageError, suggest
from stage1.files import expanded, whole_path
from stage1.hub import download

if TYPE_CHECKING:  # plugins load torch, which reading a file need not wait for
    from stage1.plugins.interfaces import Dataset, Split

ASKED = ("validation", "dev", "test")
"""A Hub's splits that questions are asked of where none is named: many test splits have no answers."""

_NAME = re.compile(r"([\w.-]+:)?[\w-]+")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class Source(NamedTuple):
    """A data set that is found, its questions not yet read."""

    name: str
    splits: "tuple[Split, ...]"  # that it has of its own, `test` among them
    read: "Callable[[Split, int | None], Records]"  # a split; the number is how many are wanted at least


def find_source(name: str, config: DataConfig, *, repeated: bool = False) -> Source:
    """The data set that `name` stands for; `config` says how it is read.

    A name without a dot or slash is a plugin's, one with a known ending a file, `owner/name` one on the Hub,
    and any other folder is read as a copy of one on the Hub.

    Args:
        name: what the user typed.
        config: fields, strictness, and which part of a Hub data set.
        repeated: keep questions whose id an earlier one has, as the official script does.

    Raises:
        UsageError: there is none, with the nearest name and what else may be passed.
    """
    if (place := _place(name)) is not None:
        return (_file if is_data_file(place) else _hub)(name, place, config, repeated)
    if _NAME.fullmatch(name):
        return _plugin(name, config)
    path = expanded(name)
    file = os.path.isfile(path)  # noqa: PTH113 - pathlib's does not answer for names that no file can have
    if _HUB_ID.fullmatch(name) and not file:
        return _hub(name, name, config, repeated)
    if file or "/" in name:
        read_rows(path)  # says what is wrong
    return _plugin(name, config)  # says what there is


def _place(name: str) -> Path | None:
    """The file or folder of this machine that `name` stands for; a file need not exist."""
    path = expanded(name)
    if is_data_file(path):
        return path
    folder = os.path.isdir(path)  # noqa: PTH112 - as above
    return path if folder and name and not _NAME.fullmatch(name) else None


def found_anywhere(name: str) -> str:
    """`name` as a whole path, where it stands for a file or folder that is there."""
    path = _place(name)
    return name if path is None or not os.path.lexists(path) else str(whole_path(path))


def _plugin(name: str, config: DataConfig) -> Source:
    from stage1.plugins import load_plugins

    try:
        cls = load_plugins().get("dataset", name)
    except UsageError as error:
        raise UsageError(error.problem, f"{error.remedy} Or pass a file: {FORMATS}") from None
    return Source(name, cls.splits, partial(_ask_plugin, cls, config))


def _ask_plugin(cls: "type[Dataset]", config: DataConfig, split: "Split", at_least: int | None) -> Records:
    from stage1.plugins import load_plugins
    from stage1.plugins.faults import FaultError, guarded

    def ask() -> list[dict[str, object]]:
        return [dict(row) for row in cls().records(split, at_least)]

    try:
        rows = guarded("raised", ask)
    except FaultError as fault:
        if isinstance(fault.__cause__, Stage1Error):  # the data set says itself what the user can do
            raise fault.__cause__ from None
        raise PluginError(f"The data set {cls.name!r} of {load_plugins().owner(cls)} {fault}.") from fault
    return check_rows(rows, cls.name, strict=config.strict)


def _file(name: str, path: Path, config: DataConfig, repeated: bool) -> Source:
    """A file, see `FORMATS`; of SQuAD v2 by its version 2.0, or by a name like `squad_v2` or `dev-v2.0`."""
    v2_name = re.search(r"squad[-_]?v2|v2\.0", f"{path.parent.name}/{path.name}".lower()) is not None

    def read(split: "Split", at_least: int | None) -> Records:
        table = read_rows(path)
        v2 = v2_name or re.fullmatch(r"v?2(\.0)*", str(table.version)) is not None
        try:
            rows = [flat for row in table.rows for flat in flat_rows(row, path.parent)]
        except ValueError as error:
            raise UsageError(f"{path} cannot be read: {error}.", f"A file is {FORMATS}") from None
        return check_rows(
            rows, str(path), v2=v2, fields=config.fields, strict=config.strict, repeated=repeated
        )

    return Source(name, ("test",), read)


def _hub(name: str, place: Path | str, config: DataConfig, repeated: bool) -> Source:
    """A data set as the Hub has it, there or in a folder here, read through `datasets`; no code of it is run.

    Raises:
        UsageError: there is no such repository, configuration or split, or it is out of reach.
    """
    where = str(place)
    if not expanded(where).is_dir():
        # `datasets` retries for 23 seconds before it says that there is no network, and says little else.
        download(where, ["README.md"], config.revision, repo_type="dataset")
    import datasets

    datasets.disable_progress_bars()  # ours says what is read
    ask = partial(_ask_hub, where, config.revision)
    part = config.config
    if part is None:
        names = sorted(ask(datasets.get_dataset_config_names))
        if len(names) > 1:
            choice = f"Choose one: --set data.config={names[0]}"
            raise UsageError(f"{where} has the configurations {', '.join(names)}.", choice)
        part = names[0] if names else None
    found = ask(datasets.get_dataset_split_names, part)
    asked = config.split or next((split for split in ASKED if split in found), found[0])
    if asked not in found:
        raise UsageError(f"{where} has no split {asked!r}.", f"data.split: {suggest(asked, found)}")
    v2 = re.search(r"squad[-_]?v2", name.lower()) is not None

    def read(split: "Split", at_least: int | None) -> Records:
        table = ask(datasets.load_dataset, part, split=asked if split == "test" else split)
        rows = [flat for row in table.to_list() for flat in flat_rows(row)]
        return check_rows(rows, name, v2=v2, fields=config.fields, strict=config.strict, repeated=repeated)

    has_train = "train" in found and asked != "train"
    return Source(name, ("train", "test") if has_train else ("test",), read)


def _ask_hub(
    where: str, revision: str | None, function: "Callable[..., Any]", *args: Any, **kwargs: Any
) -> Any:
    """What a function of `datasets` answers; its errors and its Hub client's have no common base."""
    try:
        return function(where, *args, revision=revision, **kwargs)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UsageError(
            f"Cannot read the data set {where}: {reason}.",
            "Check data.config and data.revision, or download its file and pass that.",
        ) from None

"""SQuAD v1.1 from the Hugging Face Hub."""

from collections.abc import Iterable, Mapping
from typing import Any

import stage1
from stage1.data.formats import read_rows
from stage1.errors import UsageError
from stage1.hub import download

REPOSITORY = "rajpurkar/squad"
FILES = {"train": "plain_text/train-*.parquet", "test": "plain_text/validation-*.parquet"}


class Squad(stage1.Dataset):
    """SQuAD v1.1 (Rajpurkar et al., 2016), downloaded from the Hub; the development split is asked."""

    name = "squad"
    splits = ("train", "test")

    def records(self, split: str, at_least: int | None) -> Iterable[Mapping[str, Any]]:
        # Not through `datasets`: it retries for 23 seconds without a network, and one file is all there is.
        files = sorted(download(REPOSITORY, [FILES[split]], repo_type="dataset").glob(FILES[split]))
        if not files:  # offline, the client answers with whatever part of the repository it has
            raise UsageError(
                f"The Hub's cache lacks {FILES[split]} of {REPOSITORY}.",
                "Connect, or download SQuAD elsewhere and pass its file: --data dev-v1.1.json.",
            )
        return [row for file in files for row in read_rows(file).rows]


@stage1.hookimpl
def stage1_datasets() -> type[stage1.Dataset]:
    return Squad

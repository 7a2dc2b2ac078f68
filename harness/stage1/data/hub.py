"""Data sets as the Hugging Face Hub has them: a repository there, or a folder of the same form here."""

from typing import Any

from stage1.config import DataConfig
from stage1.data.formats import Row
from stage1.errors import UsageError, suggest
from stage1.files import expanded
from stage1.hub import download

ASKED = ("validation", "dev", "test")
"""Splits that questions are asked of where none is named: many test splits are published without answers."""


class HubDataset:
    """The splits of one configuration, read through `datasets`. No code of a repository is run.

    Raises:
        UsageError: there is no such repository, configuration or split, or it is out of reach.
    """

    def __init__(self, name: str, config: DataConfig) -> None:
        self.name, self.revision, self.config = name, config.revision, config.config
        if not expanded(name).is_dir():
            # `datasets` retries for 23 seconds before it says that there is no network, and says little else.
            download(name, ["README.md"], config.revision, repo_type="dataset")
        import datasets

        datasets.disable_progress_bars()  # ours says what is read
        if self.config is None:
            names = self._ask(datasets.get_dataset_config_names, name, revision=self.revision)
            if len(names) > 1:
                raise UsageError(
                    f"{name} has the configurations {', '.join(sorted(names))}.",
                    f"Choose one: --set data.config={sorted(names)[0]}",
                )
            self.config = names[0] if names else None
        found = self._ask(datasets.get_dataset_split_names, name, self.config, revision=self.revision)
        self.asked = config.split or next((split for split in ASKED if split in found), found[0])
        if self.asked not in found:
            raise UsageError(
                f"{name} has no split {self.asked!r}.", f"data.split: {suggest(self.asked, found)}"
            )
        self.has_train = "train" in found and self.asked != "train"

    def rows(self, split: str) -> list[Row]:
        """The rows of a split, as they are."""
        import datasets

        loaded = self._ask(datasets.load_dataset, self.name, self.config, split=split, revision=self.revision)
        rows: list[Row] = loaded.to_list()
        return rows

    def _ask(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """What `datasets` answers; its errors and its Hub client's have no common base."""
        try:
            return function(*args, **kwargs)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise UsageError(
                f"Cannot read the data set {self.name}: {reason}.",
                "Check data.config and data.revision, or download its file and pass that.",
            ) from None

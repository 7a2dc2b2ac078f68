"""The Hugging Face Hub: files by repository id, or one clear line that says why not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from stage1.errors import UsageError


def download(
    repo_id: str,
    files: Sequence[str],
    revision: str | None = None,
    *,
    repo_type: Literal["model", "dataset"] = "model",
) -> Path:
    """The folder with the files of `repo_id` that match the patterns `files`, from the cache or the Hub.

    Raises:
        UsageError: no such repository or revision, gated, or out of reach; with the remedy.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(
            repo_id, repo_type=repo_type, revision=revision, allow_patterns=list(files)
        )
    except HFValidationError:
        raise UsageError(
            f"{repo_id!r} is neither a folder here nor a Hub id.", "Check the path; a Hub id is owner/name."
        ) from None
    except GatedRepoError:
        raise UsageError(
            f"{repo_id} is gated.",
            "Accept its licence on its page on the Hub, then log in with `hf auth login`.",
        ) from None
    except RevisionNotFoundError:
        raise UsageError(f"{repo_id} has no revision {revision!r}.", "Check --revision.") from None
    except RepositoryNotFoundError:
        raise UsageError(
            f"The Hub has no {repo_id!r}, or it is private.",
            "Check the name, log in with `hf auth login`, or pass a folder.",
        ) from None
    except Exception as error:  # the client's own, its HTTP library's and the system's have no common base
        cause = error.__cause__ or error  # what the network said, not what the client made of it
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise UsageError(
            f"Cannot reach {repo_id} on the Hub: {reason}",
            "Connect, log in with `hf auth login`, or download it elsewhere and pass the folder or file.",
        ) from None
    return Path(folder)


def cached(repo_id: str, revision: str | None = None) -> Path | None:
    """The folder of a model that was downloaded before; None where there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None

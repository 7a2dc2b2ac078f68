"""Where a run's numbers came from: versions, machine, commit."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

LIBRARIES = ("stage1", "torch", "transformers", "lm-eval", "accelerate", "safetensors", "datasets")


def provenance() -> dict[str, Any]:
    """What manifest.json says of the program and the machine."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "platform": platform.platform(),
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    """Commit of the working directory's repository, and whether it has uncommitted changes."""

    def git(*args: str) -> str:
        command = ["git", *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None

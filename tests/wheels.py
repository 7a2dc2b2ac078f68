"""Packages built into wheels and installed into a virtual environment of their own, without the network."""

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable
from pathlib import Path


def pip(python: str | Path, *arguments: str | Path) -> None:
    """Run the pip of `python`, without the network."""
    # The cache would keep a wheel of every temporary folder.
    flags = ("--disable-pip-version-check", "--no-cache-dir")
    command = [python, "-m", "pip", *flags, *arguments, "--no-deps", "--no-index"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr


class Environment:
    """A virtual environment in `folder` with packages installed from their wheels.

    What else they need is imported from the environment that runs the tests, whose folders a .pth file names.
    The .pth files in those folders are not read, so that stage1's editable install stays out of sight.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.wheels = folder / "venv", folder / "wheels"
        scheme = {"base": str(self.folder), "platbase": str(self.folder)}
        self.site = Path(sysconfig.get_path("purelib", "venv", scheme))
        self.scripts = Path(sysconfig.get_path("scripts", "venv", scheme))

    def build(self, sources: Iterable[Path]) -> None:
        """Create it, with the packages of these folders."""
        pip(sys.executable, "wheel", "--no-build-isolation", "--wheel-dir", self.wheels, *sources)
        venv.create(self.folder, with_pip=True, symlinks=os.name != "nt")
        pip(self.scripts / "python", "install", *self.wheels.glob("*.whl"))
        others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        (self.site / "dependencies.pth").write_text("\n".join(others))

    def run(
        self, program: str, *arguments: str | Path, cwd: Path, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `stage1` or `python` of this environment; the result has returncode, stdout and stderr."""
        whole = {**os.environ, "COLUMNS": "160", **(env or {})}
        whole.pop("PYTHONPATH", None)  # would come before what is installed
        command = [self.scripts / program, *arguments]
        return subprocess.run(command, cwd=cwd, env=whole, capture_output=True, text=True, timeout=600)

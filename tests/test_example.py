"""`examples/stage1-quantize` passes its own tests; what users do with it is in test_wheels.py."""

import shutil
from pathlib import Path

import pytest

from conftest import EXAMPLE
from wheels import Environment


@pytest.mark.slow
def test_its_own_tests_pass_on_the_wheel(installed: Environment, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    command = ("pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "tests")
    run = installed.run("python", "-m", *command, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr

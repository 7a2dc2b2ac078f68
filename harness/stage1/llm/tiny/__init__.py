"""The embedded model: a Llama of a few million parameters that answers tiny-squad.

`tools/train_tiny.py` rebuilds it.
"""

from pathlib import Path

MODEL_DIR: Path = Path(__file__).parent / "model"

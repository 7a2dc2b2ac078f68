"""A model and a data set small enough for a laptop: the whole harness can run on them without a download.

``tiny_squad`` invents reading-comprehension passages in SQuAD's schema; ``MODEL_DIR`` holds a Llama of a few
million parameters that answers them. ``tools/train_tiny.py`` rebuilds the model from nothing.
"""

from pathlib import Path

from stage1.tiny.generator import Answers, Record, Split, tiny_squad

MODEL_DIR: Path = Path(__file__).parent / "model"

__all__ = ["MODEL_DIR", "Answers", "Record", "Split", "tiny_squad"]

"""The learning rate over the steps."""

import math

from stage1.config import TrainConfig


def learning_rate(step: int, train: TrainConfig) -> float:
    """Linear warm-up, then a half cosine down to zero at the last step."""
    warmup = round(train.warmup * train.steps)
    if step < warmup:
        return train.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, train.steps - warmup)
    return train.lr * 0.5 * (1 + math.cos(math.pi * done))

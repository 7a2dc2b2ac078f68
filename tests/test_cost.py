"""How many questions an F1 check may ask: counted, so the same on every machine."""

from typing import Any, cast

import pytest
from torch import nn

from conftest import small_config
from stage1.training.selection import MOST, affordable_questions


class Asked(nn.Module):
    """A model of a thousand parameters beside its table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 20)
        self.body = nn.Linear(1000, 1, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.table


@pytest.mark.parametrize(("tokens", "number"), [(4010, 50), (500, 0), (10**6, MOST)])
def test_a_tenth_of_the_training_at_most(tokens: int, number: int) -> None:
    config = small_config("train.steps=200", "train.check_every=50", "eval.max_new_tokens=25")
    bottleneck = nn.Linear(50, 5, bias=False)
    given: dict[str, Any] = {"tokens": tokens, "length": 100.0}
    found = affordable_questions(config, cast(Any, bottleneck), cast(Any, Asked()), reads_llm=False, **given)
    assert found == number
    training = 200 * 3 * tokens * 250
    checks = 6 * number * 1000 * (100 + 4 * 25)
    assert checks <= 0.1 * training or number == MOST

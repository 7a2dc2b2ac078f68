"""The loss: known values."""

import math

import pytest
import torch
from torch import Tensor

from stage1 import ComponentConfig, LossInputs
from stage1.testing import LossSuite
from stage1_additive.relative import Relative


class TestRelative(LossSuite):
    component = Relative


ORIGINAL = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
WEIGHTS = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 0.0, 1.0, 1.0, 1.0]])


def value(reconstruction: Tensor, original: Tensor = ORIGINAL) -> float:
    ids = torch.zeros(2, 5, dtype=torch.long)
    inputs = LossInputs(original, reconstruction, WEIGHTS, ids, variance=1.0)
    return float(Relative(ComponentConfig())(inputs))


def test_zero_is_perfect_and_one_the_zero_vector() -> None:
    assert value(ORIGINAL) == 0
    assert value(torch.zeros_like(ORIGINAL)) == pytest.approx(1)
    assert value(1.1 * ORIGINAL) == pytest.approx(0.01, rel=1e-4)


def test_long_and_short_vectors_count_alike() -> None:
    scale = torch.logspace(-1, 1, 5)[:, None]
    noise = 0.3 * torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    assert value((ORIGINAL + noise) * scale, ORIGINAL * scale) == pytest.approx(
        value(ORIGINAL + noise), rel=1e-4
    )


def test_positions_that_do_not_cross_do_not_count() -> None:
    elsewhere = ORIGINAL.clone()
    elsewhere[1, :2] = 100
    assert value(elsewhere) == 0


def test_an_empty_row_of_the_table_does_no_harm() -> None:
    original = ORIGINAL.clone()
    original[0, 0] = 0
    assert math.isfinite(value(original + 0.1, original))

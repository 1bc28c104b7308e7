"""A trainer's own weights follow a linear combination, and what is not linear is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from budwood.api import NATIVE, Array, BindingError, LinearCombination, RewardCombination, TermColumn, WeightVector


class Sum:
    """The K-th column has the weight K times ``factor``."""

    needs_obs = False

    def __init__(self, native: float = 0.0) -> None:
        self.version, self.factor, self.native = 0, 1.0, native
        self.names: tuple[str, ...] = ()

    def bind(self, columns: Any) -> None:
        self.names = tuple(column.name for column in columns)

    @property
    def column_weights(self) -> Array:
        weights = self.factor * np.arange(len(self.names), dtype=np.float64)
        weights[:1] = self.native
        return weights

    def __call__(self, terms: Array, obs: Any) -> Array:
        summed: Array = terms @ self.column_weights
        return summed


class Product:
    version, needs_obs = 0, False

    def bind(self, columns: Any) -> None: ...

    def __call__(self, terms: Array, obs: Any) -> Array:
        product: Array = terms.prod(axis=1)
        return product


class OfStates(Sum):
    needs_obs = True


COLUMNS = [TermColumn("a.one", 1.0), TermColumn("a.two", 1.0)]


def test_weights_are_written_at_once_and_when_the_version_changes() -> None:
    written: list[list[float]] = []
    combination = Sum()
    vector = WeightVector(combination, COLUMNS, lambda weights: written.append(weights.tolist()))
    assert combination.names == (NATIVE, "a.one", "a.two")
    assert written == [[1.0, 2.0]]
    combination.factor = 3.0
    assert not vector.follow(), "the version says whether anything has changed"
    combination.version += 1
    assert vector.follow()
    assert not vector.follow()
    assert written == [[1.0, 2.0], [3.0, 6.0]]


def test_linear_is_what_tells_its_weights() -> None:
    assert isinstance(Sum(), LinearCombination)
    assert isinstance(Product(), RewardCombination)
    assert not isinstance(Product(), LinearCombination)


@pytest.mark.parametrize(
    ("combination", "message"),
    [
        (Product(), "Product is no weighted sum with the same weights for every sample"),
        (OfStates(), "OfStates is no weighted sum with the same weights for every sample"),
        (Sum(native=0.5), "the environment's own reward has the weight 0.5, and this trainer has no environment"),
    ],
)
def test_what_a_trainer_cannot_do_is_refused(combination: RewardCombination, message: str) -> None:
    with pytest.raises(BindingError, match=message):
        WeightVector(combination, COLUMNS, lambda weights: None)

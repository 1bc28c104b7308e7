"""Rewards that are weighted sums, for trainers that do the summing themselves.

TRL's GRPOTrainer, for one, multiplies a vector of weights, one a reward function, into the matrix of their rewards. Its
adapter binds a combination to columns as any adapter does, and instead of calling it copies its weights into that vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from budwood.api.errors import BindingError
from budwood.api.reward import NATIVE, RewardCombination, TermColumn
from budwood.api.state import Array


@runtime_checkable
class LinearCombination(RewardCombination, Protocol):
    """A combination whose reward is ``terms @ column_weights`` as long as ``version`` stays the same.

    Only one whose ``needs_obs`` is False has the same weights for every sample. After ``bind``, ``names`` are those of the
    K columns.
    """

    names: Sequence[str]

    @property
    def column_weights(self) -> Array:
        """(K,) float64, in the order of ``names``."""


class WeightVector:
    """A trainer's own vector of weights, one for each of ``columns``, that follows a combination.

    ``write`` is given (len(columns),) float64 at once, and by :meth:`follow` whenever the combination has changed.

    :raises BindingError: the combination is not linear, or gives weight to an environment's own reward.
    """

    def __init__(
        self, combination: RewardCombination, columns: Sequence[TermColumn], write: Callable[[Array], None]
    ) -> None:
        if not isinstance(combination, LinearCombination) or combination.needs_obs:
            raise BindingError(
                f"{type(combination).__name__} is no weighted sum with the same weights for every sample, and this trainer "
                "can do no other",
                do="Use weights that do not depend on the observation",
            )
        combination.bind([TermColumn(NATIVE, 0.0), *columns])
        self.combination = combination
        self._write = write
        self._version: int | None = None
        self.follow()

    def follow(self) -> bool:
        """Copy the weights if they have changed since the last time; whether they had."""
        if self.combination.version == self._version:
            return False
        weights = self.combination.column_weights
        if (native := float(weights[0])) != 0.0:
            raise BindingError(
                f"the environment's own reward has the weight {native:g}, and this trainer has no environment",
                do="Leave it out of the reward terms",
            )
        self._write(weights[1:])
        self._version = self.combination.version
        return True

"""The reward the trainer sees: r = sum_k w_k s_k R_k over this plugin's terms, w_task R_task, and other plugins' terms.

The environment's own reward takes part only if ``native`` is among the terms. Columns are added one after another, never
by a matrix product, whose rounding depends on how many rows it is given: recomputing stored rewards under unchanged
weights must give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from budwood.api import NATIVE, Array, StateTree, TermColumn
from budwood_reward_shaping.terms import SignCheck, Term
from budwood_reward_shaping.weights import WeightSpace

PLUGIN = "reward_shaping"
TASK = "task"


class WeightedTerms:
    """Implements :class:`~budwood.api.LinearCombination`. ``weights`` and ``scales`` (n,) are in the order of ``terms``."""

    needs_obs = False

    def __init__(self, terms: Sequence[Term], weights: Array, scales: Array, w_task: float) -> None:
        self.terms, self.w_task = terms, w_task
        self.weights = np.asarray(weights, dtype=np.float64)
        self.scales = np.asarray(scales, dtype=np.float64)
        self.version = 0
        self.names: tuple[str, ...] = ()
        self.columns: list[int] = []
        self.task_column: int | None = None
        self._fixed: list[tuple[int, float]] = []
        self._sum: list[tuple[int, float]] = []

    def bind(self, columns: Sequence[TermColumn]) -> None:
        self.names = tuple(column.name for column in columns)
        index = {name: number for number, name in enumerate(self.names)}
        self.columns = [index[NATIVE if t.name == "native" else f"{PLUGIN}.{t.name}"] for t in self.terms]
        self.task_column = index.get(f"{PLUGIN}.{TASK}")
        ours = {0, self.task_column, *self.columns}
        self._fixed = [(number, column.weight) for number, column in enumerate(columns) if number not in ours]
        if self.task_column is not None:
            self._fixed.append((self.task_column, self.w_task))
        self._signs = SignCheck(self.terms, self.columns)
        self._resum()

    @property
    def scale_free(self) -> bool:
        """Whether nothing of fixed weight is in the reward, so that only the ratios of the weights matter."""
        return not any(weight for _, weight in self._fixed)

    @property
    def coefficients(self) -> Array:
        """(n,) how far each term moves the reward."""
        return self.weights * self.scales

    @property
    def column_weights(self) -> Array:
        """(K,) of every bound column, those of other plugins included."""
        weights = np.zeros(len(self.names))
        for column, weight in self._sum:
            weights[column] += weight
        return weights

    def change(self, weights: Array | None = None, scales: Array | None = None) -> None:
        """New weights or scales; rewards stored under the old ones become stale."""
        self.weights = self.weights if weights is None else np.array(weights, dtype=np.float64)
        self.scales = self.scales if scales is None else np.array(scales, dtype=np.float64)
        self.version += 1
        self._resum()

    def follow(self, space: WeightSpace, phi: Array) -> None:
        """From now on the weights that ``phi`` means in ``space``."""
        self.change(weights=space.weights(phi))

    def __call__(self, terms: Array, obs: Any | None) -> Array:
        if self._signs.left > 0:
            self._signs(terms)
        (column, coefficient), *rest = self._sum
        reward: Array = coefficient * terms[:, column]
        for column, coefficient in rest:
            reward += coefficient * terms[:, column]
        return reward

    def _resum(self) -> None:
        searched = zip(self.columns, self.coefficients.tolist(), strict=True) if self.columns else ()
        self._sum = [(column, weight) for column, weight in (*searched, *self._fixed) if weight != 0.0]

    def state_dict(self) -> StateTree:
        return {"weights": self.weights.copy(), "scales": self.scales.copy(), "version": self.version}

    def load_state_dict(self, state: StateTree) -> None:
        self.weights, self.scales = np.array(state["weights"]), np.array(state["scales"])
        self.version = state["version"]
        self._resum()

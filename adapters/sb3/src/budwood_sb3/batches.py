"""Steps of a vector of environments as reward terms and observers see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from budwood.api import Array, ContributionError, StepBatch


class ArrayBatch(StepBatch):
    """A :class:`StepBatch` of environments whose infos are arrays: ``arrays`` maps an info key to (n,)."""

    __slots__ = ("arrays",)

    arrays: Mapping[str, Array]

    def info(self, key: str) -> Array:
        try:
            return np.asarray(self.arrays[key], dtype=np.float64)
        except KeyError:
            known = ", ".join(sorted(self.arrays)) or "none"
            raise ContributionError(f"the environment gives no info key {key!r}; it gives {known}") from None


def with_terminal_observations(next_obs: Any, dones: Array, infos: Sequence[Mapping[str, Any]]) -> Any:
    """A copy of ``next_obs`` (n, ...), where an episode ended with its last observation instead of the next one's first."""
    if isinstance(next_obs, dict):
        return {
            key: _replaced(part, dones, [info.get("terminal_observation", {}).get(key) for info in infos])
            for key, part in next_obs.items()
        }
    return _replaced(next_obs, dones, [info.get("terminal_observation") for info in infos])


def timeouts(infos: Sequence[Mapping[str, Any]]) -> Array:
    """(n,) bool: the episode ended by a time limit only."""
    return np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])


def rows_of(obs: Any, rows: Any) -> Any:
    """The chosen rows of observations, which may be a dict of arrays."""
    return {key: part[rows] for key, part in obs.items()} if isinstance(obs, dict) else obs[rows]


def _replaced(array: Array, dones: Array, last: Sequence[Any]) -> Array:
    changed = array.copy()
    for row in np.flatnonzero(dones):
        if last[row] is not None:
            changed[row] = last[row]
    return changed

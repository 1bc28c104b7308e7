"""Whether a task is done: criteria over episodes, the task reward they define, and the performance of a policy.

``n`` environments, ``J`` criteria, ``E`` episodes. A criterion compares one statistic of an episode with a threshold,
c_j in {0, 1}. The task reward is prod_j c_j (or mean_j c_j) at an episode's last step and 0 before; performance is
P = mean_e prod_j c_j.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from budwood.api import Array, RunControl, StateTree, StepBatch

Stat = Literal["final", "sum", "mean", "max", "min"]
Combine = Callable[[Array, Array], Array]

COMBINE: Mapping[str, tuple[float, Combine]] = {
    "final": (0.0, lambda _, new: new),
    "sum": (0.0, np.add),
    "mean": (0.0, np.add),
    "max": (-np.inf, np.maximum),
    "min": (np.inf, np.minimum),
}
"""Statistic -> (value before the first step, how a step's value joins it)."""


@dataclass(frozen=True)
class Criterion:
    name: str
    source: Callable[[StepBatch], Array]
    stat: Stat
    op: Literal[">=", "<="]
    threshold: float

    def met(self, value: Array) -> Array:
        return value >= self.threshold if self.op == ">=" else value <= self.threshold


class EpisodeStatistics:
    """The criteria's statistics of the episodes under way in ``n`` environments."""

    def __init__(self, criteria: Sequence[Criterion], n: int) -> None:
        self.criteria = criteria
        self.values = np.zeros((len(criteria), n))
        self.steps = np.zeros(n, dtype=np.int64)
        self.restart(slice(None))

    def add(self, batch: StepBatch, rows: Any = slice(None)) -> None:
        """One step of the environments ``rows``, in the order of the batch."""
        self.steps[rows] += 1
        for criterion, value in zip(self.criteria, self.values, strict=True):
            value[rows] = COMBINE[criterion.stat][1](value[rows], criterion.source(batch))

    def finish(self, rows: Array) -> Array:
        """(m, J) bool: which criteria the episodes that end now in ``rows`` have met; their statistics start afresh."""
        columns = []
        for criterion, value in zip(self.criteria, self.values, strict=True):
            result = value[rows] / self.steps[rows] if criterion.stat == "mean" else value[rows]
            columns.append(criterion.met(result))
        self.restart(rows)
        return np.stack(columns, axis=1)

    def restart(self, rows: Any) -> None:
        self.steps[rows] = 0
        for criterion, value in zip(self.criteria, self.values, strict=True):
            value[rows] = COMBINE[criterion.stat][0]


class TaskReward:
    """The task as a reward term: nothing until an episode ends, then whether its criteria were met."""

    across_processes = "environments"

    def __init__(self, criteria: Sequence[Criterion], mode: Literal["all", "fraction"] = "all") -> None:
        self.criteria, self.mode = criteria, mode
        self._episodes: EpisodeStatistics | None = None

    def __call__(self, batch: StepBatch) -> Array:
        n = len(batch.dones)
        if self._episodes is None:
            self._episodes = EpisodeStatistics(self.criteria, n)
        self._episodes.add(batch)
        reward = np.zeros(n)
        if batch.dones.any():
            rows = np.flatnonzero(batch.dones)
            met = self._episodes.finish(rows)
            reward[rows] = met.all(axis=1) if self.mode == "all" else met.mean(axis=1)
        return reward

    def restart(self) -> None:
        """All environments start new episodes."""
        self._episodes = None

    def state_dict(self) -> StateTree:
        if self._episodes is None:
            return {"values": None}
        return {"values": self._episodes.values.T.copy(), "steps": self._episodes.steps.copy()}  # (n, J), (n,)

    def load_state_dict(self, state: StateTree) -> None:
        self._episodes = None
        if state["values"] is not None:
            self._episodes = EpisodeStatistics(self.criteria, len(state["steps"]))
            self._episodes.values[:] = state["values"].T
            self._episodes.steps[:] = state["steps"]


@dataclass(frozen=True)
class Performance:
    """``p`` the part of episodes that met all criteria and ``se`` its standard error, ``soft`` the mean part of criteria met,
    ``each`` the part of episodes that met each criterion."""

    p: float
    se: float
    soft: float
    each: Mapping[str, float]

    @classmethod
    def of(cls, names: Sequence[str], met: Array) -> Performance:
        """``met`` (E, J) bool."""
        p = float(met.all(axis=1).mean())
        se = float(np.sqrt(p * (1.0 - p) / len(met)))
        return cls(p, se, float(met.mean()), dict(zip(names, met.mean(axis=0).tolist(), strict=True)))

    def metrics(self) -> dict[str, float]:
        each = {f"criterion/{name}": value for name, value in self.each.items()}
        return {"P": self.p, "P_se": self.se, "P_soft": self.soft, **each}


def measure(control: RunControl, criteria: Sequence[Criterion], episodes: int, seed: int) -> Performance:
    """Evaluate the current policy: deterministic actions, ``episodes`` episodes on environments of their own."""
    statistics = EpisodeStatistics(criteria, episodes)
    met: list[Array] = []

    def observe(batch: StepBatch) -> None:
        rows = np.array([info["env_index"] for info in batch.infos])
        statistics.add(batch, rows)
        if batch.dones.any():
            met.append(statistics.finish(rows[batch.dones]))

    control.evaluate(episodes, seed, observe)
    return Performance.of([criterion.name for criterion in criteria], np.concatenate(met))

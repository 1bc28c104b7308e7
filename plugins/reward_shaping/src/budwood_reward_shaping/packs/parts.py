"""What terms and signals of several families are made of. All of it can be pickled, so packs can travel to workers.

Indices into observations hold for the environments' default observations: an environment that is told to put the torso's
position in front (``exclude_current_positions_from_observation: false``) needs terms of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from budwood.api import Array, StepBatch
from budwood_reward_shaping.config import CriterionConfig
from budwood_reward_shaping.terms import action_sq

TILTED = 1.0
"""Radians from upright at which a body no longer counts as upright."""


ADVANCES = CriterionConfig(name="advances", source="x_velocity", stat="mean", op=">=", threshold=1.0)
STAYS_UPRIGHT = CriterionConfig(name="stays_upright", source="is_upright", stat="mean", op=">=", threshold=0.9)
LASTS = CriterionConfig(name="lasts", source="step", stat="sum", op=">=", threshold=1000.0)
"""The tasks' own time limit."""


def minus_abs(values: Array) -> Array:
    """-|x|: how far from zero, as a penalty."""
    return -np.abs(np.asarray(values, dtype=np.float64))


def effort(batch: StepBatch) -> Array:
    """-|a|^2, of the action as it is sent to the environment."""
    return -action_sq(batch)


def drift(batch: StepBatch) -> Array:
    """-|v_y|, metres a second: motion beside the way."""
    return minus_abs(batch.info("y_velocity"))


@dataclass(frozen=True)
class Component:
    """One component of the observation that followed the action."""

    index: int

    def __call__(self, batch: StepBatch) -> Array:
        return np.asarray(batch.next_obs[:, self.index], dtype=np.float64)


@dataclass(frozen=True)
class Distance:
    """Length of ``size`` components of the observation from ``first`` on, or of their difference to those from ``other`` on."""

    first: int
    size: int
    other: int | None = None

    def __call__(self, batch: StepBatch) -> Array:
        obs = np.asarray(batch.next_obs, dtype=np.float64)
        vector = obs[:, self.first : self.first + self.size]
        if self.other is not None:
            vector = vector - obs[:, self.other : self.other + self.size]
        length: Array = np.linalg.norm(vector, axis=1)
        return length


@dataclass(frozen=True)
class Alive:
    """``bonus`` for every step that does not end in a fall. The tasks of version 4 pay it for the fall too."""

    bonus: float = 1.0

    def __call__(self, batch: StepBatch) -> Array:
        return np.where(batch.dones & ~batch.timeouts, 0.0, self.bonus)

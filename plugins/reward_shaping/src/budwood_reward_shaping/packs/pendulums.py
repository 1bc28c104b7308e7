"""InvertedPendulum and InvertedDoublePendulum, from observations alone: only Gymnasium's version 5 gives infos.

The environment's own reward is alive, and alive + tip + still for the double pendulum. Version 4 pays ``alive`` for the
fall too.
"""

from __future__ import annotations

import numpy as np

from budwood.api import Array, StepBatch
from budwood_reward_shaping.packs.parts import LASTS, Alive, Component, effort, minus_abs
from budwood_reward_shaping.terms import BatchTerm, ObsTerm, Pack

CART, ANGLE = 0, 1
"""Indices of the cart's position, metres, and of the single pendulum's angle, radians."""
LINK = 0.6
"""Length of each link of the double pendulum, metres."""


def _tip(batch: StepBatch) -> tuple[Array, Array]:
    """(n,) where the tip is: along the rail and above it. The second angle is measured from the first link."""
    x, sin_1, sin_2, cos_1, cos_2 = np.asarray(batch.next_obs[:, :5], dtype=np.float64).T
    return x + LINK * (sin_1 + sin_1 * cos_2 + cos_1 * sin_2), LINK * (cos_1 + cos_1 * cos_2 - sin_1 * sin_2)


def tip_height(batch: StepBatch) -> Array:
    """Of the double pendulum's tip above the rail, metres; 1.2 upright."""
    return _tip(batch)[1]


def tip(batch: StepBatch) -> Array:
    """The environment's distance penalty, -(0.01 x^2 + (y - 2)^2) of the tip."""
    x, y = _tip(batch)
    penalty: Array = 0.01 * x * x + np.square(y - 2.0)
    return -penalty


def still(batch: StepBatch) -> Array:
    """The environment's velocity penalty, of angular velocities that the observation clips at 10 radians a second."""
    v_1, v_2 = np.asarray(batch.next_obs[:, 6:8], dtype=np.float64).T
    penalty: Array = 1e-3 * v_1 * v_1 + 5e-3 * v_2 * v_2
    return -penalty


EFFORT, CENTRED = BatchTerm("effort", effort, sign="-"), ObsTerm("centred", CART, minus_abs, sign="-")

SINGLE = Pack(
    (BatchTerm("alive", Alive(), sign="+"), ObsTerm("upright", ANGLE, minus_abs, sign="-"), CENTRED, EFFORT),
    {"angle": Component(ANGLE), "position": Component(CART)},
    (LASTS,),
)
DOUBLE = Pack(
    (
        BatchTerm("alive", Alive(10.0), sign="+"),
        BatchTerm("tip", tip, sign="-"),
        BatchTerm("still", still, sign="-"),
        CENTRED,
        EFFORT,
    ),
    {"tip_height": tip_height, "position": Component(CART)},
    (LASTS,),
)

"""HalfCheetah, Hopper, Walker2d and Swimmer: bodies that move in a plane.

The environment's own reward is forward + effort for HalfCheetah and Swimmer, forward + effort + alive for Hopper and
Walker2d (version 4 pays ``alive`` for the fall too). EnvPool spells some infos otherwise and lacks others.
"""

from __future__ import annotations

import numpy as np

from budwood.api import Array, StepBatch
from budwood_reward_shaping.packs.parts import (
    ADVANCES,
    LASTS,
    STAYS_UPRIGHT,
    TILTED,
    Alive,
    Component,
    effort,
    minus_abs,
)
from budwood_reward_shaping.terms import BatchTerm, InfoTerm, ObsTerm, Pack, Signal

HEIGHT, PITCH = 0, 1
"""Indices of the torso's height, metres, and pitch, radians; a cheetah's height is that above its start."""
HEADING = 0
"""Index of the angle of a swimmer's front link, radians."""


def walking_effort(batch: StepBatch) -> Array:
    """The walkers' control cost, which only Gymnasium's version 5 puts into the infos."""
    return 1e-3 * effort(batch)


def is_upright(batch: StepBatch) -> Array:
    """1 where the torso is within a radian of level, else 0."""
    pitch = np.asarray(batch.next_obs[:, PITCH], dtype=np.float64)
    return np.where(np.abs(pitch) < TILTED, 1.0, 0.0)


FORWARD = InfoTerm("forward", "reward_forward", aliases=("reward_run", "reward_fwd", "x_velocity"))
EFFORT = InfoTerm("effort", "reward_ctrl", sign="-")
UPRIGHT = ObsTerm("upright", PITCH, minus_abs, sign="-")
SIGNALS: dict[str, str | Signal] = {"is_upright": is_upright, "height": Component(HEIGHT)}

CHEETAH = Pack((FORWARD, EFFORT, UPRIGHT), SIGNALS, (ADVANCES, STAYS_UPRIGHT))
WALKER = Pack(
    (FORWARD, BatchTerm("effort", walking_effort, sign="-"), UPRIGHT, BatchTerm("alive", Alive(), sign="+")),
    SIGNALS,
    (ADVANCES, STAYS_UPRIGHT, LASTS),
)
SWIMMER = Pack((FORWARD, EFFORT, ObsTerm("straight", HEADING, minus_abs, sign="-")))

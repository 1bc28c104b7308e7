"""Ant, Humanoid and HumanoidStandup: bodies free to move in space, whose torso's orientation is a quaternion.

The environment's own reward is forward + effort + alive for Ant and Humanoid, in version 5 with contact, and
rise + effort + impact + 1 for HumanoidStandup. Version 4 pays ``alive`` for the fall too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from budwood.api import Array, StepBatch
from budwood_reward_shaping.packs.parts import ADVANCES, LASTS, STAYS_UPRIGHT, TILTED, Alive, Component, drift
from budwood_reward_shaping.terms import BatchTerm, InfoTerm, Pack, Signal

HEIGHT = 0
"""Index of the torso's height, metres."""
ORIENTATION = slice(1, 5)
"""The torso's quaternion (w, x, y, z), at first only nearly of length 1."""


def standing(batch: StepBatch) -> Array:
    """Cosine of the angle between the vertical and the torso's own z axis."""
    w, x, y, z = _orientation(batch)
    cosine: Array = 1.0 - 2.0 * (x * x + y * y) / (w * w + x * x + y * y + z * z)
    return cosine


def head_up(batch: StepBatch) -> Array:
    """As :func:`standing` for HumanoidStandup, which is modelled lying: its head is on the torso's own -x side."""
    w, x, y, z = _orientation(batch)
    cosine: Array = 2.0 * (w * y - x * z) / (w * w + x * x + y * y + z * z)
    return cosine


def _orientation(batch: StepBatch) -> Array:
    return np.asarray(batch.next_obs[:, ORIENTATION], dtype=np.float64).T


def upright(batch: StepBatch) -> Array:
    """cos(tilt) - 1, from 0 upright to -2 upside down."""
    return standing(batch) - 1.0


def lying(batch: StepBatch) -> Array:
    """As :func:`upright` for HumanoidStandup."""
    return head_up(batch) - 1.0


@dataclass(frozen=True)
class IsUpright:
    """1 where the torso is within a radian of upright, else 0."""

    lying_model: bool = False

    def __call__(self, batch: StepBatch) -> Array:
        cosine = head_up(batch) if self.lying_model else standing(batch)
        return np.where(cosine > np.cos(TILTED), 1.0, 0.0)


UPRIGHT = BatchTerm("upright", upright, sign="-")
DRIFT = BatchTerm("drift", drift, sign="-")
SIGNALS: dict[str, str | Signal] = {"is_upright": IsUpright(), "height": Component(HEIGHT)}

ANT_V4 = Pack(
    (
        InfoTerm("forward", "reward_forward"),
        InfoTerm("effort", "reward_ctrl", sign="-"),
        BatchTerm("alive", Alive(), sign="+"),
        UPRIGHT,
        DRIFT,
    ),
    SIGNALS,
    (ADVANCES, STAYS_UPRIGHT, LASTS),
)
ANT_V5 = Pack((*ANT_V4.terms, InfoTerm("contact", "reward_contact", sign="-")), SIGNALS, ANT_V4.criteria)

HUMANOID_V4 = Pack(
    (
        InfoTerm("forward", "reward_forward", aliases=("reward_linvel",)),
        InfoTerm("effort", "reward_ctrl", sign="-", aliases=("reward_quadctrl",)),
        BatchTerm("alive", Alive(5.0), sign="+"),
        UPRIGHT,
        DRIFT,
    ),
    SIGNALS,
    (ADVANCES, STAYS_UPRIGHT, LASTS),
)
HUMANOID_V5 = Pack(
    (*HUMANOID_V4.terms, InfoTerm("contact", "reward_contact", sign="-", aliases=("reward_impact",))),
    SIGNALS,
    HUMANOID_V4.criteria,
)
STANDUP = Pack(
    (
        InfoTerm("rise", "reward_linup"),
        InfoTerm("effort", "reward_quadctrl", sign="-"),
        InfoTerm("impact", "reward_impact", sign="-"),
        BatchTerm("upright", lying, sign="-"),
    ),
    {"is_upright": IsUpright(lying_model=True), "height": Component(HEIGHT)},
)

"""Terms for Gymnasium's MuJoCo runners, also where EnvPool steps them: it spells some infos otherwise and lacks others."""

from __future__ import annotations

import numpy as np

from budwood.api import Array, StepBatch
from budwood_reward_shaping.terms import BatchTerm, InfoTerm, Pack, action_sq

PITCH = 1
"""Index of the torso's pitch, radians, in the observations of HalfCheetah, Hopper and Walker2d."""


def _pitch(batch: StepBatch) -> Array:
    return np.abs(np.asarray(batch.next_obs[:, PITCH], dtype=np.float64))


def upright(batch: StepBatch) -> Array:
    """Minus the torso's pitch, either way, in radians."""
    return -_pitch(batch)


def is_upright(batch: StepBatch) -> Array:
    """1 where the torso is within a radian of level."""
    return np.where(_pitch(batch) < 1.0, 1.0, 0.0)


def effort(batch: StepBatch) -> Array:
    """The walkers' control cost."""
    return -1e-3 * action_sq(batch)


def alive(batch: StepBatch) -> Array:
    """1 for every step that does not end in a fall."""
    return np.where(batch.dones & ~batch.timeouts, 0.0, 1.0)


FORWARD = InfoTerm("forward", "reward_forward", aliases=("reward_run", "x_velocity"))
UPRIGHT = BatchTerm("upright", upright, sign="-")
SIGNALS = {"is_upright": is_upright}

CHEETAH = Pack((FORWARD, InfoTerm("effort", "reward_ctrl", sign="-"), UPRIGHT), SIGNALS)
WALKER = Pack((FORWARD, BatchTerm("effort", effort, sign="-"), UPRIGHT, BatchTerm("alive", alive, sign="+")), SIGNALS)

PACKS = {
    "HalfCheetah-v4": CHEETAH,
    "HalfCheetah-v5": CHEETAH,
    "Hopper-v4": WALKER,
    "Hopper-v5": WALKER,
    "Walker2d-v4": WALKER,
    "Walker2d-v5": WALKER,
}

"""Reacher and Pusher: arms that bring something to a goal.

The environment's own reward is reach + effort for Reacher and push + near + effort for Pusher. Version 4 measures the
distances before the step; Pusher-v4 is EnvPool's only, since Gymnasium's does not run on current MuJoCo.
"""

from __future__ import annotations

import numpy as np

from budwood.api import Array, StepBatch
from budwood_reward_shaping.config import CriterionConfig
from budwood_reward_shaping.packs.parts import Distance
from budwood_reward_shaping.terms import BatchTerm, InfoTerm, Pack

JOINTS = slice(6, 8)
"""Velocities of a reacher's two joints, radians a second."""
TO_TARGET = 8
"""Index of the vector from a reacher's target to its fingertip, metres."""
TIP, OBJECT, GOAL = 14, 17, 20
"""Indices of the positions (3,) of a pusher's fingertip, of the object and of the goal, metres."""


def still(batch: StepBatch) -> Array:
    """Minus the squared velocity of the joints."""
    squares: Array = np.square(np.asarray(batch.next_obs[:, JOINTS], dtype=np.float64)).sum(axis=1)
    return -squares


REACHER = Pack(
    (
        InfoTerm("reach", "reward_dist", sign="-"),
        InfoTerm("effort", "reward_ctrl", sign="-"),
        BatchTerm("still", still, sign="-"),
    ),
    {"distance": Distance(TO_TARGET, 2), "speed": Distance(JOINTS.start, 2)},
    (CriterionConfig(name="reaches", source="distance", stat="final", op="<=", threshold=0.05),),
)

PUSH, NEAR = InfoTerm("push", "reward_dist", sign="-"), InfoTerm("near", "reward_near", sign="-")
PUSHER_SIGNALS = {"distance": Distance(OBJECT, 3, GOAL), "gap": Distance(OBJECT, 3, TIP)}
PUSHES = CriterionConfig(name="pushes", source="distance", stat="final", op="<=", threshold=0.1)
PUSHER_V4 = Pack((PUSH, NEAR, InfoTerm("effort", "reward_ctrl", sign="-", factor=0.1)), PUSHER_SIGNALS, (PUSHES,))
PUSHER_V5 = Pack((PUSH, NEAR, InfoTerm("effort", "reward_ctrl", sign="-")), PUSHER_SIGNALS, (PUSHES,))

"""Terms for Gymnasium's MuJoCo tasks, versions 4 and 5, also where EnvPool steps them."""

from __future__ import annotations

from budwood_reward_shaping.packs import arms, pendulums, planar, spatial
from budwood_reward_shaping.terms import Pack

PACKS: dict[str, Pack] = {
    **{
        f"{name}-{version}": pack
        for name, pack in (
            ("HalfCheetah", planar.CHEETAH),
            ("Hopper", planar.WALKER),
            ("Walker2d", planar.WALKER),
            ("Swimmer", planar.SWIMMER),
            ("HumanoidStandup", spatial.STANDUP),
            ("Reacher", arms.REACHER),
            ("InvertedPendulum", pendulums.SINGLE),
            ("InvertedDoublePendulum", pendulums.DOUBLE),
        )
        for version in ("v4", "v5")
    },
    "Ant-v4": spatial.ANT_V4,
    "Ant-v5": spatial.ANT_V5,
    "Humanoid-v4": spatial.HUMANOID_V4,
    "Humanoid-v5": spatial.HUMANOID_V5,
    "Pusher-v4": arms.PUSHER_V4,
    "Pusher-v5": arms.PUSHER_V5,
}
"""By Gymnasium id."""

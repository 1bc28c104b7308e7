"""A small visual task of our own, named in words: go to one of three coloured discs. ``env: {type: discs}`` of LeRobot.

``discover_packages_path: budwood_lerobot.discs`` registers it, and ``python -m budwood_lerobot.discs FOLDER`` records
demonstrations of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_STATE

from budwood_lerobot.discs.environment import FPS, SIDE, STEPS

ID = "budwood/Discs-v0"
gym.register(ID, entry_point="budwood_lerobot.discs.environment:Discs")


@EnvConfig.register_subclass("discs")
@dataclass
class DiscsEnv(EnvConfig):  # type: ignore[misc]
    """``episode_length`` steps are the time limit."""

    task: str | None = "Discs-v0"
    fps: int = FPS
    episode_length: int = STEPS
    render_mode: str = "rgb_array"
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            ACTION: PolicyFeature(FeatureType.ACTION, (2,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (2,)),
            "pixels": PolicyFeature(FeatureType.VISUAL, (SIDE, SIDE, 3)),
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {ACTION: ACTION, "agent_pos": OBS_STATE, "pixels": OBS_IMAGE}
    )

    @property
    def gym_id(self) -> str:
        return ID

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {"render_mode": self.render_mode, "max_episode_steps": self.episode_length}

from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig


class Nod(gym.Env):  # type: ignore[type-arg]
    """As many steps as asked for, reward 1 each; a success if it began to the right of the middle."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gym.spaces.Dict({"agent_pos": gym.spaces.Box(0, 1, (2,), np.float32)})
    action_space = gym.spaces.Box(-10, 10, (2,), np.float32)

    def __init__(self, steps: int) -> None:
        self._max_episode_steps = steps

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.t = self.np_random.uniform(0, 1, 2).astype(np.float32), 0
        self.right = bool(self.place[0] > 0.5)
        return {"agent_pos": self.place}, {"is_success": False}

    def step(self, action: Any) -> Any:
        self.t += 1
        done = self.t == self._max_episode_steps
        return {"agent_pos": self.place}, 1.0, done, False, {"is_success": done and self.right}

    def render(self) -> Any:
        return np.zeros((64, 64, 3), np.uint8)


@EnvConfig.register_subclass("nodding")
@dataclass
class NodEnv(EnvConfig):
    steps: int = 3
    tasks: int = 1
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            "action": PolicyFeature(type=FeatureType.ACTION, shape=(2,)),
            "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(2,)),
        }
    )
    features_map: dict[str, str] = field(default_factory=lambda: {"action": "action", "agent_pos": "observation.state"})

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> Any:
        same_step = gym.vector.AutoresetMode.SAME_STEP
        return {
            "nodding": {
                task: gym.vector.SyncVectorEnv([lambda: Nod(self.steps)] * n_envs, autoreset_mode=same_step)
                for task in range(self.tasks)
            }
        }

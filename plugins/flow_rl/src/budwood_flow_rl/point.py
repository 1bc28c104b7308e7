"""A small task with an answer: a point that may go left or right, and demonstrations that do both.

Half of the demonstrations end at the left mode, half at the right one, and only the right one is rewarded. A flow cloned
from them earns about half of what there is; one that keeps its skill and drops a mode earns nearly all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from budwood.api import Array, StateTree
from budwood_flow_rl.demonstrations import Demonstrations, concatenated
from budwood_flow_rl.pretraining import Pretraining, Settings

STEPS = 8
"""Environment steps of an episode: two chunks of four."""
SPEED = 0.25
MODES = np.array([[-1.0, 0.0], [1.0, 0.0]])
WIDTH = 0.4


class TwoModes(gym.Env[Array, Array]):
    """Observation (x, y, part of the episode gone); action (2,) in [-1, 1], a velocity. At the end the reward is
    exp(-|p - (1, 0)|^2 / (2 0.4^2)), before it 0."""

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 10,
    }

    place: Array

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(-4.0, 4.0, (3,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.place, self.time = np.zeros(2), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.time = self.np_random.normal(0.0, 0.05, 2), 0
        return self._observed(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.place = self.place + SPEED * np.asarray(action, dtype=np.float64)
        self.time += 1
        over = self.time == STEPS
        distance = float(((self.place - MODES[1]) ** 2).sum())
        reward = float(np.exp(-distance / (2 * WIDTH**2))) if over else 0.0
        return self._observed(), reward, over, False, {}

    def render(self) -> Array:
        """(96, 96, 3) uint8: the modes as rings, the point as a disc; 4 units across."""
        across = np.linspace(-2, 2, 96)
        x, y = np.meshgrid(across, -across)
        picture = np.full((96, 96, 3), 255, np.uint8)
        for mode, colour in zip(MODES, ((200, 200, 200), (80, 170, 80)), strict=True):
            picture[abs(np.hypot(x - mode[0], y - mode[1]) - WIDTH) < 0.04] = colour
        picture[np.hypot(x - self.place[0], y - self.place[1]) < 0.1] = (40, 80, 200)
        return picture

    def state_dict(self) -> StateTree:
        return {"place": self.place, "time": self.time}

    def load_state_dict(self, state: StateTree) -> None:
        self.place, self.time = state["place"], state["time"]

    def _observed(self) -> Array:
        return np.array([*self.place, self.time / STEPS], dtype=np.float32)


def demonstrations(episodes: int = 400, seed: int = 0) -> Demonstrations:
    """Straight walks to a mode drawn with equal odds, each step off by N(0, 0.05^2)."""
    rng = np.random.default_rng(seed)
    env = TwoModes()
    walks: list[tuple[Array, Array, Array | None]] = []
    for episode in range(episodes):
        mode = MODES[rng.integers(2)]
        observations, actions, rewards = [], [], []
        obs, _ = env.reset(seed=seed if episode == 0 else None)
        for time in range(STEPS):
            left = (mode - env.place) / (SPEED * (STEPS - time))
            action = np.clip(left + rng.normal(0.0, 0.05, 2), -1.0, 1.0).astype(np.float32)
            observations.append(obs)
            actions.append(action)
            obs, reward, *_ = env.step(action)
            rewards.append(reward)
        walks.append((np.array(observations), np.array(actions), np.array(rewards)))
    return concatenated(
        walks,
        terminated=[True] * episodes,
        truncated=[False] * episodes,
        env_id="budwood_flow_rl.point:TwoModes",
        about={"source": "scripted walks to both modes", "seed": seed},
    )


def pretrain(folder: Path, walks: Demonstrations, seed: int = 0, steps: int = 1500) -> None:
    """A small flow cloned from ``walks`` into ``folder``."""
    settings = Settings(horizon=4, hidden=(64, 64, 64), steps=steps, batch=128, held_out=0.0, seed=seed)
    Pretraining(folder, walks, settings).run()

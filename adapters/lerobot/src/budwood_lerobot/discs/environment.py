"""The task: three discs, one of each colour, lie around a point that can be moved; the one that is named is to be touched.

Where the discs lie is in the picture alone, and which of them counts is in the words alone. Drawn with numpy, thousands of
pictures a second. Lengths: the picture is 2 across, from -1 to 1, y upwards.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from budwood.api import Array

FPS, SIDE = 10, 64
STEPS = 8
"""Time limit of an episode: at full speed even the farthest disc is touched by then."""
SPEED = 0.1
RADIUS, POINT = 0.2, 0.08
NEAR, FAR = 0.55, 0.8
"""How far the middles of the discs lie from the picture's."""
TURN = 0.25
"""Radians by which a disc lies off one of three directions: up, left below, right below."""
COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (40, 80, 220)}
GROUND, INK = np.array([245.0, 245.0, 240.0]), np.array([20.0, 20.0, 20.0])
WOBBLE = 0.1
"""Standard deviation of what is added to each number of the rule's actions."""

_ACROSS = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1


class Discs(gym.Env[Any, Array]):
    """Observation ``pixels`` (64, 64, 3) uint8 and ``agent_pos`` (2,); action (2,) in [-1, 1], a velocity.

    Reward 1 where the point touches the disc that ``task_description`` names, which ends the episode as a success; another
    disc ends it with 0. Nothing else is rewarded.
    """

    task = "discs"
    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Dict(
            {
                "agent_pos": gym.spaces.Box(-1.0, 1.0, (2,), np.float32),
                "pixels": gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8),
            }
        )
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.point: Array = np.zeros(2)
        self.discs: Array = np.zeros((3, 2))
        self.named = 0
        self._ground: Array = np.zeros((SIDE, SIDE, 3))

    @property
    def task_description(self) -> str:
        return f"{list(COLOURS)[self.named]} disc"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        super().reset(seed=seed)
        rng = self.np_random
        turn = np.pi / 2 + rng.permutation(3) * 2 * np.pi / 3 + rng.uniform(-TURN, TURN, 3)
        self.discs = rng.uniform(NEAR, FAR, (3, 1)) * np.stack([np.cos(turn), np.sin(turn)], axis=1)  # (3, 2)
        self.point, self.named = rng.uniform(-0.1, 0.1, 2), int(rng.integers(3))
        self._ground = np.tile(GROUND, (SIDE, SIDE, 1))
        for middle, colour in zip(self.discs, COLOURS.values(), strict=True):
            _draw(self._ground, middle, RADIUS, np.array(colour, dtype=float))
        return self._observed(), {"is_success": False}

    def step(self, action: Array) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        self.point = np.clip(self.point + SPEED * np.clip(np.asarray(action, dtype=np.float64), -1, 1), -1, 1)
        touched = np.linalg.norm(self.discs - self.point, axis=1) < RADIUS  # (3,), at most one
        success = bool(touched[self.named])
        return self._observed(), float(success), bool(touched.any()), False, {"is_success": success}

    def render(self) -> Array:
        """(256, 256, 3) uint8: what the policy sees, four times as large."""
        seen: Array = self._observed()["pixels"].repeat(4, axis=0).repeat(4, axis=1)
        return seen

    def _observed(self) -> dict[str, Array]:
        picture = self._ground.copy()
        _draw(picture, self.point, POINT, INK)
        return {"agent_pos": self.point.astype(np.float32), "pixels": picture.astype(np.uint8)}


def aim(point: Array, disc: Array, rng: np.random.Generator, pace: float = 1.0) -> Array:
    """The rule's action (2,) float32: straight to the middle of the disc, wobbling, at that share of full speed."""
    away = disc - point
    wanted = pace * away / max(float(np.linalg.norm(away)), SPEED) + rng.normal(0, WOBBLE, 2)
    action: Array = np.clip(wanted, -1, 1).astype(np.float32)
    return action


def _draw(picture: Array, middle: Array, radius: float, colour: Array) -> None:
    """Blend a disc with a soft rim of a pixel into ``picture`` (64, 64, 3), in the square around it alone."""
    reach = radius + 2 / SIDE
    columns = slice(*np.searchsorted(_ACROSS, [middle[0] - reach, middle[0] + reach]))
    rows = slice(*np.searchsorted(_ACROSS, [-middle[1] - reach, -middle[1] + reach]))
    far = np.hypot(_ACROSS[columns][None, :] - middle[0], _ACROSS[rows][:, None] + middle[1])
    share = np.clip((radius - far) * SIDE / 2 + 0.5, 0, 1)[..., None]
    picture[rows, columns] += share * (colour - picture[rows, columns])

"""An environment whose action is a whole denoising chain: of it the environment's own actions are cut out and executed.

The trainer stores the chain as it was sampled; scaling and clipping happen in the call of the environment only, so no
log-probability ever sees them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from budwood.api import Array, BindingError, ContributionError, StateTree

COUNTED = ("decisions", "budwood_env_steps", "saturated", "seconds")
WIDE = 1e6
"""Bound of a chain's entries: trainers ask for finite bounds, and no entry of a working flow comes near."""


@dataclass(frozen=True)
class ChainShape:
    """K ``steps``, H ``horizon``, C ``execute``; ``extra`` entries follow the chain: a hybrid one's drawn step, or the
    log-probabilities of single steps."""

    steps: int
    horizon: int
    execute: int
    extra: int = 0

    def size(self, action_dim: int) -> int:
        return (self.steps + 1) * self.horizon * action_dim + self.extra

    def action_dim(self, size: int) -> int:
        """D of a flattened chain of ``size`` entries."""
        return (size - self.extra) // ((self.steps + 1) * self.horizon)

    def cut(self, chain: Array, action_dim: int) -> Array:
        """(A,) -> (C, D): the executed part of x_K."""
        entries = self.horizon * action_dim
        last: Array = chain[self.steps * entries : (self.steps + 1) * entries]
        return last.reshape(self.horizon, action_dim)[: self.execute]


class ActionScale:
    """x, clamped to [-1, 1], -> centre + radius x, clipped to the environment's own bounds.

    ``data`` is (centre, radius) of the demonstrations. Without it [-1, 1] is the environment's range, and a dimension with an
    infinite bound has no range: there x is the action itself, not clamped, and a finite other bound still clips.
    """

    def __init__(self, space: gym.spaces.Box, data: tuple[Array, Array] | None = None) -> None:
        self.low, self.high = space.low.reshape(-1), space.high.reshape(-1)
        self.shape, self.dtype = space.shape, space.dtype
        bounded = np.isfinite(self.low) & np.isfinite(self.high)
        low, high = np.where(bounded, self.low, -1.0), np.where(bounded, self.high, 1.0)
        self.centre: Array
        self.radius: Array
        self.centre, self.radius = data if data is not None else ((low + high) / 2, (high - low) / 2)
        self.limit = np.where(bounded | (data is not None), 1.0, np.inf)

    def __call__(self, x: Array) -> tuple[Array, int]:
        """(C, D) -> actions (C, D) within bounds, and how many entries were clamped or clipped on the way."""
        wanted = self.centre + self.radius * np.clip(x, -self.limit, self.limit)
        actions: Array = np.clip(wanted, self.low, self.high)
        return actions.astype(self.dtype), int(np.count_nonzero((abs(x) > self.limit) | (actions != wanted)))


class ChainActions(gym.Wrapper[Any, Any, Any, Any]):
    """A step is a decision: up to C steps of ``env``, rewards summed without discount, ended early by the episode's end.

    ``terminated``, ``truncated``, observation and info are those of the last step taken. What counts up: ``decisions``;
    ``budwood_env_steps``, those of ``env``; ``saturated``, the share of a chunk's entries that were clamped or clipped;
    ``seconds``, CPU time of ``env``.

    ``leaks``: an episode that is cut off is followed by the next one in the same step, whose first observation is returned,
    as though it went on there. The reference bootstraps so, and its credit leaks between episodes.
    """

    def __init__(
        self, env: gym.Env[Any, Any], shape: ChainShape, data: tuple[Array, Array] | None = None, leaks: bool = False
    ) -> None:
        super().__init__(env)
        self.leaks = leaks
        if not isinstance(env.action_space, gym.spaces.Box):
            raise BindingError(
                f"a flow policy gives continuous actions, and the environment takes {env.action_space}",
                where="env.id",
                do="Choose an environment with Box actions",
            )
        if not isinstance(env.observation_space, gym.spaces.Box) or len(env.observation_space.shape) != 1:
            raise BindingError(
                f"a flow policy on states reads a vector, and the environment shows {env.observation_space}",
                where="env.id",
                do="Flatten its observations in a class of your own, named module:Class",
            )
        self.shape, self.scale = shape, ActionScale(env.action_space, data)
        self.action_dim = len(self.scale.low)
        self.action_space = gym.spaces.Box(-WIDE, WIDE, (shape.size(self.action_dim),), np.float32)
        self.decisions, self.budwood_env_steps, self.saturated, self.seconds = 0, 0, 0.0, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self._check(obs, 0.0, "reset")
        return obs, info

    def step(self, action: Array) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        chunk = self.shape.cut(np.asarray(action), self.action_dim)
        if not np.isfinite(chunk).all():
            raise ContributionError(
                "the flow policy gave an action that is not finite",
                where="plugins.flow_rl",
                do="Lower the learning rate, or the noise; the last metrics show which of them grew",
            )
        actions, changed = self.scale(chunk)
        began = time.process_time()
        total, terminated, truncated = 0.0, False, False
        for taken in actions:
            obs, reward, terminated, truncated, info = self.env.step(taken.reshape(self.scale.shape))
            total += float(reward)
            self.budwood_env_steps += 1
            self._check(obs, float(reward), "step")
            if terminated or truncated:
                break
        self.seconds += time.process_time() - began
        self.decisions += 1
        self.saturated += changed / actions.size
        if self.leaks and truncated and not terminated:
            (obs, _), truncated = self.reset(), False
        return obs, total, terminated, truncated, info

    def _check(self, obs: Array, reward: float, call: str) -> None:
        """:raises ContributionError: the environment gave a number that is not finite; later the policy would."""
        what = "an observation" if not np.isfinite(obs).all() else "a reward" if not np.isfinite(reward) else ""
        if what:
            name = self.env.spec.id if self.env.spec is not None else type(self.env.unwrapped).__name__
            raise ContributionError(
                f"{call} of the environment {name} gave {what} that is not finite",
                where="env.id",
                do="Correct the environment, or choose another one; the policy is not the cause",
            )

    def state_dict(self) -> StateTree:
        return {name: getattr(self, name) for name in COUNTED}

    def load_state_dict(self, state: StateTree) -> None:
        for name in COUNTED:
            setattr(self, name, state.get(name, 0))  # checkpoints of earlier versions lack the environment's steps

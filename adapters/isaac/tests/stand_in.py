"""A stand-in that keeps the contract of an Isaac Lab environment, without a simulator.

n carts on a line under a random push and the action, as tensors that the next step overwrites. The reward manager multiplies
by weights and not by dt, skips terms of weight 0, and reuses its tensor; the environment restarts what ended within the
step, and shows the last observation as ``final_obs``. Carts fall beyond |x| = 1 and time out after ``LIMIT`` steps.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch

LIMIT = 6
DT = 1 / 60
AUTHOR = {"alive": 1.0, "fallen": -2.0, "speed": -0.005, "metric": 0.0, "place": -0.3}


@dataclass
class Term:
    func: Callable[[Any], torch.Tensor]
    weight: float


TERMS: dict[str, Callable[[Any], torch.Tensor]] = {
    "alive": lambda env: (~env.fallen).float(),
    "fallen": lambda env: env.fallen.float(),
    "speed": lambda env: env.x[:, 1].abs(),
    "metric": lambda env: 1.0 / (env.fallen.float() - env.fallen.float()),  # infinite: 0 x metric is no number
    "place": lambda env: env.x[:, 0].square(),
}


class RewardManager:
    """What Isaac Lab documents of its own: ``compute`` overwrites ``_step_reward`` (n, K), weighted, not times dt."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self._terms = {name: Term(TERMS[name], weight) for name, weight in AUTHOR.items()}
        self.active_terms = list(AUTHOR)
        self._step_reward = torch.zeros(env.num_envs, len(AUTHOR))
        self._reward_buf = torch.zeros(env.num_envs)
        self.computed: list[str] = []
        self.resets = 0

    def get_term_cfg(self, name: str) -> Term:
        return self._terms[name]

    def set_term_cfg(self, name: str, term: Term) -> None:
        self._terms[name] = term

    def reset(self, env_ids: torch.Tensor) -> dict[str, Any]:
        self.resets += 1
        return {}

    def compute(self, dt: float) -> torch.Tensor:
        self.computed.clear()
        for column, (name, term) in enumerate(self._terms.items()):
            if term.weight == 0.0:
                self._step_reward[:, column] = 0.0
                continue
            self.computed.append(name)
            torch.mul(term.func(self._env), term.weight, out=self._step_reward[:, column])
        return torch.sum(self._step_reward, dim=1, out=self._reward_buf).mul_(dt)


class StandIn(gym.Env):
    """``managed`` False is the direct workflow: no reward manager, one reward. ``curriculum`` is called at every reset."""

    def __init__(self, n: int = 3, seed: int = 0, managed: bool = True, nested: bool = False) -> None:
        self.num_envs, self.device, self.nested = n, "cpu", nested
        self.generator = torch.Generator().manual_seed(seed)
        box = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        policy = gym.spaces.Dict({"x": box, "age": gym.spaces.Box(0, 1, (1,), np.float32)}) if nested else box
        self.single_observation_space = gym.spaces.Dict({"policy": policy, "critic": box})
        self.single_action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.x, self.age, self.fallen = torch.zeros(n, 2), torch.zeros(n), torch.zeros(n, dtype=torch.bool)
        self.obs = torch.zeros(n, 2)
        self.extras: dict[str, Any] = {}
        self.curriculum: Callable[[Any], None] = lambda env: None
        self.closed = False
        if managed:
            self.reward_manager = RewardManager(self)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.generator.manual_seed(seed)
        self._restart(torch.arange(self.num_envs))
        return self._observed(), {}

    def step(self, action: torch.Tensor) -> Any:
        push = torch.rand(self.num_envs, generator=self.generator) - 0.5
        self.x[:, 1] += 0.3 * (action[:, 0] + push)
        self.x[:, 0] += self.x[:, 1]
        self.age += 1
        self.fallen = self.x[:, 0].abs() > 1
        timed_out = self.age >= LIMIT
        managed = hasattr(self, "reward_manager")
        reward = self.reward_manager.compute(dt=DT) if managed else 1.0 - self.x[:, 0].abs()
        ended = (self.fallen | timed_out).nonzero().squeeze(-1)
        if len(ended):
            self.extras["final_obs"] = {"policy": self._policy(self.x.clone())}
            self._restart(ended)
        return self._observed(), reward, self.fallen.clone(), timed_out, self.extras

    def close(self) -> None:
        self.closed = True
        print("closed", flush=True)

    def _restart(self, rows: torch.Tensor) -> None:
        self.curriculum(self)
        if hasattr(self, "reward_manager"):
            self.reward_manager.reset(rows)
        self.x[rows] = 0.2 * torch.rand(len(rows), 2, generator=self.generator) - 0.1
        self.age[rows] = 0

    def _observed(self) -> dict[str, Any]:
        self.obs.copy_(self.x)
        return {"policy": self._policy(self.obs), "critic": self.obs}

    def _policy(self, x: torch.Tensor) -> Any:
        return {"x": x, "age": (self.age / LIMIT)[:, None]} if self.nested else x


# ---- what a simulation's process is told to launch ---------------------------------------------------------------------


def launch(use: Callable[[Callable[[], Any]], None]) -> None:
    print("starting", flush=True)
    use(lambda: StandIn(3, seed=5))


def launch_dying(use: Callable[[Callable[[], Any]], None]) -> None:
    """A simulator that takes its process with it at the second step."""
    dying = StandIn(3)
    steps = iter(range(2))
    step = dying.step
    dying.step = lambda action: step(action) if next(steps) == 0 else os._exit(7)  # type: ignore[method-assign]
    use(lambda: dying)

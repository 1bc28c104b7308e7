"""Small environments and policies for the online loop; nothing of LeRobot is imported."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

BOX = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
OBS = gym.spaces.Dict({"agent_pos": BOX, "environment_state": BOX})


class Reach(gym.Env):
    """A point in the plane that is pushed to a goal. Reward: how much nearer it came. Ends within 0.15 of the goal."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space, action_space = OBS, gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode, self.task = render_mode, "reach the goal"
        self.point, self.goal = np.zeros(2), np.zeros(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.point, self.goal = self.np_random.uniform(-1, 1, (2, 2))
        return self._seen(), {"is_success": False}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        before = self._distance()
        wind = self.np_random.normal(0, 0.01, 2)
        self.point = self.point + 0.25 * np.clip(action, -1, 1) + wind
        near = bool(self._distance() < 0.15)
        return self._seen(), before - self._distance(), near, False, {"is_success": near, "wind": float(wind[0])}

    def _distance(self) -> float:
        return float(np.linalg.norm(self.point - self.goal))

    def _seen(self) -> dict[str, Any]:
        return {"agent_pos": self.point.astype(np.float32), "environment_state": self.goal.astype(np.float32)}


class Clock(gym.Env):
    """Counts: observation (episode's length, steps so far), reward 1, 2, 3, ... Its seed decides how long an episode is and
    whether it ends by itself (odd) or is cut off (even)."""

    metadata = {"render_modes": [], "render_fps": 10}  # noqa: RUF012
    observation_space, action_space = OBS, gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.length, self.now = int(self.np_random.integers(1, 9)), 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.now += 1
        over = self.now == self.length
        return self._seen(), float(self.now), over and self.length % 2 == 1, over and self.length % 2 == 0, {}

    def _seen(self) -> dict[str, Any]:
        place = np.array([self.length, self.now], np.float32)
        return {"agent_pos": place, "environment_state": np.zeros(2, np.float32)}


def tensors(obs: Any) -> dict[str, Any]:
    """As LeRobot names what these environments give."""
    return {
        "observation.state": torch.from_numpy(obs["agent_pos"]),
        "observation.environment_state": torch.from_numpy(obs["environment_state"]),
    }


def net(size: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, out))


def flat(obs: Any) -> Tensor:
    return torch.cat([obs["observation.state"], obs["observation.environment_state"]], dim=1)


class Gaussian(nn.Module):
    """A diagonal Gaussian over a chunk of C steps, and a critic."""

    def __init__(self, observations: Any, actions: Any, steps: int = 2) -> None:
        super().__init__()
        size = sum(gym.spaces.flatdim(space) for space in observations.values())
        self.shape = (steps, actions.shape[0])
        self.mean, self.critic = net(size, steps * actions.shape[0]), net(size, 1)
        self.log_std = nn.Parameter(torch.full((steps * actions.shape[0],), -0.7))

    def _distribution(self, obs: Any) -> Any:
        return torch.distributions.Normal(self.mean(flat(obs)), self.log_std.exp())

    def act(self, obs: Any, deterministic: bool = False) -> Any:
        distribution = self._distribution(obs)
        actions = distribution.mean if deterministic else distribution.sample()
        return actions, distribution.log_prob(actions).sum(1), self.value(obs)

    def evaluate(self, obs: Any, actions: Tensor) -> Any:
        distribution = self._distribution(obs)
        return distribution.log_prob(actions).sum(1), distribution.entropy().sum(1), self.value(obs)

    def value(self, obs: Any) -> Tensor:
        return self.critic(flat(obs))[:, 0]

    def chunk(self, actions: Tensor) -> Tensor:
        return actions.reshape(len(actions), *self.shape)


class Tokens(nn.Module):
    """Writes C x D tokens one after the other, each one of ``bins`` values of [-1, 1]; no critic."""

    bins = 5

    def __init__(self, observations: Any, actions: Any, steps: int = 2) -> None:
        super().__init__()
        size = sum(gym.spaces.flatdim(space) for space in observations.values())
        self.shape = (steps, actions.shape[0])
        self.length = steps * actions.shape[0]
        self.start = nn.Linear(size, 32)
        self.word, self.cell = nn.Embedding(self.bins + 1, 32), nn.GRUCell(32, 32)
        self.head = nn.Linear(32, self.bins)

    def _logits(self, obs: Any, tokens: Tensor) -> Tensor:
        """(B, L, bins): of every token, given those before it; ``tokens`` (B, L) may be unknown from there on."""
        state = torch.tanh(self.start(flat(obs)))
        before = torch.full((len(tokens),), self.bins)
        logits = []
        for place in range(self.length):
            state = self.cell(self.word(before), state)
            logits.append(self.head(state))
            before = tokens[:, place]
        return torch.stack(logits, dim=1)

    def act(self, obs: Any, deterministic: bool = False) -> Any:
        tokens = torch.zeros(len(flat(obs)), self.length, dtype=torch.long)
        for place in range(self.length):
            logits = self._logits(obs, tokens)[:, place]
            chosen = logits.argmax(1) if deterministic else torch.distributions.Categorical(logits=logits).sample()
            tokens[:, place] = chosen
        return tokens.float(), self.evaluate(obs, tokens)[0], None

    def evaluate(self, obs: Any, actions: Tensor) -> Any:
        distribution = torch.distributions.Categorical(logits=self._logits(obs, actions.long()))
        return distribution.log_prob(actions.long()).sum(1), distribution.entropy().sum(1), None

    def chunk(self, actions: Tensor) -> Tensor:
        return (actions / (self.bins - 1) * 2 - 1).reshape(len(actions), *self.shape)

"""A running simulation of Isaac Lab, from tensors to arrays. It lives in the process that the simulator lives in.

n environments, K reward terms, E episodes that ended at a step. Arrays are copies: the simulator writes into its tensors at
the next step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from budwood.api import Array, ConfigError
from budwood_isaac.rewards import PerTermRewards

POLICY = "policy"
"""The group of observations that policies act on; critics of other trainers have groups of their own."""


@dataclass(frozen=True)
class Facts:
    """What is known of a simulation before its first step.

    ``author_weights``: reward term -> the weight that its author gave it, in the manager's order; None for a task of the
    direct workflow, which computes its reward in one piece.
    """

    n_envs: int
    observation_space: Any
    action_space: Any
    author_weights: Mapping[str, float] | None


class Step(NamedTuple):
    """``obs`` (n, ...) are those of the next episode where one ended, ``last_obs`` (E, ...) those it ended with."""

    obs: Any
    rewards: Array
    """(n,) float32, the author's total."""
    terminated: Array
    truncated: Array
    last_obs: Any
    terms: Array
    """(n, K) float64, sign x term x dt."""


class Backend(Protocol):
    """What a vector of environments needs of a simulation, here or in another process."""

    facts: Facts

    def reset(self, seed: int | None) -> Any:
        """Observations (n, ...) of new episodes; ``seed`` None goes on with the simulator's generators."""

    def step(self, actions: Array) -> Step: ...

    def close(self) -> None: ...


class Simulation:
    """``env`` is an environment of Isaac Lab as ``gymnasium.make`` gives it; its reward manager is replaced."""

    def __init__(self, env: Any) -> None:
        self._env, self._base = env, env.unwrapped
        manager = getattr(self._base, "reward_manager", None)
        self._rewards = None if manager is None else PerTermRewards(manager)
        if self._rewards is not None:
            self._base.reward_manager = self._rewards
        spaces = self._base.single_observation_space.spaces
        if POLICY not in spaces:
            raise ConfigError(
                f"its observations are the groups {', '.join(spaces)}, and a policy acts on the group {POLICY!r}",
                where="env.id",
                do="Give the task such a group; tasks of several agents are not supported",
            )
        self.facts = Facts(
            n_envs=self._base.num_envs,
            observation_space=spaces[POLICY],
            action_space=self._base.single_action_space,
            author_weights=None
            if self._rewards is None
            else dict(zip(self._rewards.names, self._rewards.author_weights, strict=True)),
        )

    def reset(self, seed: int | None) -> Any:
        obs, _ = self._env.reset(seed=seed)
        return _array(obs[POLICY])

    def step(self, actions: Array) -> Step:
        tensor = torch.as_tensor(actions, device=self._base.device)
        obs, rewards, terminated, truncated, extras = self._env.step(tensor)
        ended = terminated | truncated
        last = _array(_rows(extras["final_obs"][POLICY], ended)) if bool(ended.any()) else None
        terms = np.zeros((len(rewards), 0)) if self._rewards is None else _array(self._rewards.terms)
        return Step(_array(obs[POLICY]), _array(rewards), _array(terminated), _array(truncated), last, terms)

    def close(self) -> None:
        self._env.close()


def _array(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _array(part) for key, part in value.items()}
    return value.detach().to("cpu", copy=True).numpy()


def _rows(value: Any, rows: torch.Tensor) -> Any:
    return {key: part[rows] for key, part in value.items()} if isinstance(value, Mapping) else value[rows]

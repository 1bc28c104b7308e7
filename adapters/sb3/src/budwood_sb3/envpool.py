"""EnvPool's environments, stepped in C++ threads, as a Stable-Baselines3 VecEnv.

Two conventions differ and are translated here. EnvPool begins a new episode on the step *after* the last one, ignoring
that step's action; Stable-Baselines3 expects the new episode's first observation at once, and the last one in the infos.
And EnvPool's infos are arrays: they stay arrays, which :meth:`EnvPoolVecEnv.info_arrays` gives, instead of becoming
``n`` dicts a step.
"""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from budwood.api import Array, ConfigError

OWN_KEYS = ("env_id", "players", "elapsed_step")
"""EnvPool's bookkeeping among the infos."""


class EnvPoolVecEnv(VecEnv):
    """``n`` environments ``name`` of EnvPool; observations are float32 and episodes carry Monitor's statistics.

    ``args`` go to ``envpool.make``; ``num_threads`` defaults to the cores this process may use. EnvPool takes its seed
    when it is made, so a reset after :meth:`seed` makes a new pool.
    """

    def __init__(self, name: str, n: int, seed: int, args: Mapping[str, Any]) -> None:
        self._name, self._args = name, {"num_threads": min(n, len(os.sched_getaffinity(0))), **args}
        self._pool_seed, self._used = seed, False
        self._pool = self._make_pool(seed, n)
        self._arrays: dict[str, Array] = {}
        self._returns, self._lengths = np.zeros(n), np.zeros(n, dtype=int)
        self._started = time.time()
        super().__init__(n, _float32(self._pool.observation_space), self._pool.action_space)
        self._seeds = [seed + i for i in range(n)]

    def _make_pool(self, seed: int, n: int) -> Any:
        try:
            import envpool
        except ImportError as error:
            from budwood_sb3.envs import missing_dependency

            raise missing_dependency(self._name, error) from error
        known = envpool.list_all_envs()
        if self._name not in known:
            near = difflib.get_close_matches(self._name, known, n=1)
            raise ConfigError(
                f"EnvPool has no environment {self._name!r}",
                where="env.id",
                do=(f"Did you mean {near[0]!r}? " if near else "") + "Other environments run with vec: dummy",
            )
        try:
            return envpool.make(self._name, env_type="gymnasium", num_envs=n, seed=seed, **self._args)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"EnvPool refuses the arguments of {self._name}: {error}", where="env.args") from error

    def reset(self) -> Array:
        wanted = self._seeds[0]
        if wanted is not None and (wanted != self._pool_seed or self._used):
            self._pool.close()
            self._pool, self._pool_seed = self._make_pool(wanted, self.num_envs), wanted
        self._used = True
        self._reset_seeds()
        obs, infos = self._pool.reset()
        self._keep(infos)
        self._returns[:], self._lengths[:] = 0.0, 0
        return obs.astype(np.float32)  # type: ignore[no-any-return]

    def step_async(self, actions: Array) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        obs, rewards, terminated, truncated, infos = self._pool.step(self._actions)
        self._keep(infos)
        obs, rewards = obs.astype(np.float32), rewards.astype(np.float32)
        dones = terminated | truncated
        self._returns += rewards
        self._lengths += 1
        small: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if dones.any():
            ended = np.flatnonzero(dones)
            for i in ended:
                small[i] = self._last_info(i, obs[i].copy(), bool(truncated[i] and not terminated[i]))
            self._returns[ended], self._lengths[ended] = 0.0, 0
            first, place = self._pool.reset(ended.astype(np.int32))
            obs[place["env_id"]] = first
        return obs, rewards, dones, small

    def _last_info(self, i: int, obs: Array, timeout: bool) -> dict[str, Any]:
        episode = {
            "r": round(float(self._returns[i]), 6),
            "l": int(self._lengths[i]),
            "t": round(time.time() - self._started, 6),
        }
        return {"terminal_observation": obs, "TimeLimit.truncated": timeout, "episode": episode}

    def _keep(self, infos: Mapping[str, Any]) -> None:
        self._arrays = {key: value for key, value in infos.items() if key not in OWN_KEYS}

    def info_arrays(self) -> Mapping[str, Array]:
        """info key -> (n,) array of the last step, of the episodes that ended where some did."""
        return self._arrays

    def close(self) -> None:
        self._pool.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self._pool, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("the environments of EnvPool have no Python attributes")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError("the environments of EnvPool have no Python methods")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[Array | None]:
        return [None] * self.num_envs


def _float32(space: Any) -> spaces.Space[Any]:
    if not isinstance(space, spaces.Box):
        raise ConfigError(
            f"this environment of EnvPool has {type(space).__name__} observations, and only Box is supported",
            where="env.vec",
            do="Use vec: dummy",
        )
    if np.issubdtype(space.dtype, np.floating):
        return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
    return space

"""A simulation as a Stable-Baselines3 VecEnv, with infos that stay arrays.

Isaac Lab begins the next episode within the step that ends one, as Stable-Baselines3 expects of a vector; the last
observation goes into the infos, and so do the figures that Monitor would keep, over the author's reward.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from budwood.api import Array, ContributionError
from budwood_isaac.simulation import Backend, Step

PREFIX = "reward/"
"""Before a reward term's name in the info arrays."""


class IsaacVecEnv(VecEnv):
    """``author_weights``: reward term -> weight, None for a task without a reward manager."""

    def __init__(self, backend: Backend, name: str) -> None:
        self._backend, self._name = backend, name
        facts = backend.facts
        self.author_weights = facts.author_weights
        self._keys = [f"{PREFIX}{term}" for term in facts.author_weights or ()]
        self._arrays = TermArrays(name, self.author_weights is not None)
        self._returns, self._lengths = np.zeros(facts.n_envs), np.zeros(facts.n_envs, dtype=int)
        self._started = time.time()
        super().__init__(facts.n_envs, facts.observation_space, _bounded(facts.action_space))

    def reset(self) -> Any:
        obs = self._backend.reset(self._seeds[0])
        self._reset_seeds()
        self._returns[:], self._lengths[:] = 0.0, 0
        return obs

    def step_async(self, actions: Array) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Any, Array, Array, list[dict[str, Any]]]:
        step = self._backend.step(self._actions)
        self._arrays.update(zip(self._keys, step.terms.T, strict=True))
        dones = step.terminated | step.truncated
        self._returns += step.rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row, i in enumerate(np.flatnonzero(dones)):
            infos[i] = self._last_info(i, row, step)
        self._returns[dones], self._lengths[dones] = 0.0, 0
        return step.obs, step.rewards, dones, infos

    def _last_info(self, i: int, row: int, step: Step) -> dict[str, Any]:
        last = step.last_obs
        return {
            "terminal_observation": {key: part[row] for key, part in last.items()}
            if isinstance(last, dict)
            else last[row],
            "TimeLimit.truncated": bool(step.truncated[i] and not step.terminated[i]),
            "episode": {
                "r": round(float(self._returns[i]), 6),
                "l": int(self._lengths[i]),
                "t": round(time.time() - self._started, 6),
            },
        }

    def info_arrays(self) -> Mapping[str, Array]:
        """``reward/TERM`` -> (n,) float64 of the last step: the term's own value, the author's sign, times dt."""
        return self._arrays

    def close(self) -> None:
        self._backend.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if attr_name != "render_mode":
            raise AttributeError(f"the environments of {self._name} show no attribute {attr_name!r}")
        return [None for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("the environments of a simulation have no attributes of their own")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError("the environments of a simulation have no methods of their own")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[Array | None]:
        return [None] * self.num_envs


class TermArrays(dict[str, Array]):
    """Info key -> (n,) array; asked for a key that it lacks it says what the task offers instead."""

    def __init__(self, task: str, managed: bool) -> None:
        super().__init__()
        self._task, self._managed = task, managed

    def __missing__(self, key: str) -> Array:
        if self._managed:
            raise ContributionError(
                f"the task {self._task} gives no info key {key!r}; it gives {', '.join(sorted(self))}"
            )
        raise ContributionError(
            f"the task {self._task} has no reward manager (direct workflow) and computes its reward in one piece, so there "
            f"is no {key!r} to read",
            do="Declare terms as functions of observations and actions, in a pack of a plugin of yours",
        )


def _bounded(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """Stable-Baselines3 needs finite bounds; -1 and 1 where a task has none, as Isaac Lab's own wrapper gives it."""
    if isinstance(space, spaces.Box) and not space.is_bounded("both"):
        return spaces.Box(-1.0, 1.0, space.shape, np.float32)
    return space

"""An on-policy model whose environments are divided among processes, and that is still one model with all of them.

``N`` environments in all, ``n`` of them here, numbered through by rank. Steps are counted in all of them. Every process draws
the random numbers of all N and uses its own rows, so an environment meets the same actions however many processes there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from budwood.api import Array, ConfigError, Processes, Rollout
from budwood.api.sharing import check_divided
from budwood_sb3 import vec
from budwood_sb3.config import EnvConfig
from budwood_sb3.pieces import Divided


class _Counted:
    """The training environments as ``collect_rollouts`` sees them: it steps n and counts N."""

    def __init__(self, venv: VecEnv, count: int) -> None:
        self.step, self.num_envs = venv.step, count


class Together(BaseAlgorithm):
    """Mixed into PPO or A2C with an update of ours. ``_processes`` is set by :func:`divided`."""

    _processes: Processes

    def _setup_model(self) -> None:
        assert self.env is not None
        if not self._processes.first:  # it is that of the first environment here, which is not the first of all
            self.action_space = deepcopy(self.action_space)
        self.all_envs = self.env.num_envs * self._processes.count
        self._pieces = Divided(self._processes)
        self._ended: list[tuple[int, int, dict[str, Any]]] = []
        super()._setup_model()  # type: ignore[safe-super]  # PPO's or A2C's
        self.policy.register_forward_pre_hook(self._among_all)
        self.policy.register_forward_hook(self._own)

    def set_random_seed(self, seed: int | None = None) -> None:
        super().set_random_seed(seed)
        if seed is not None:
            seed_environments(self, seed)

    def _among_all(self, policy: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Observations (n, ...) -> (N, ...): in the other rows stand copies, whose actions nobody takes."""
        obs, *rest = given
        repeats = self._processes.count
        return (_each(obs, lambda part: part.repeat(repeats, *[1] * (part.dim() - 1))), *rest)

    def _own(self, policy: Any, given: Any, made: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        rows = self._processes.part(self.all_envs)
        return tuple(part[rows] for part in made)

    def collect_rollouts(self, env: Any, *args: Any, **kwargs: Any) -> bool:
        collected: bool = super().collect_rollouts(_Counted(env, self.all_envs), *args, **kwargs)  # type: ignore[misc]
        return collected

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: Array | None = None) -> None:
        """Remember what ended; :meth:`exchange_episodes` puts it where Stable-Baselines3 does."""
        first = self._processes.part(self.all_envs).start
        for i, info in enumerate(infos):
            known: dict[str, Any] = {key: info[key] for key in ("episode", "is_success") if key in info}
            if "episode" in known or (dones is not None and dones[i] and known):
                known["ended"] = dones is not None and bool(dones[i])
                self._ended.append((self.num_timesteps, first + i, known))

    def exchange_episodes(self) -> None:
        """Episodes that ended in the environments of all, in the order in which one process would have seen them."""
        ended = sorted(
            (item for part in self._processes.gather(self._ended) for item in part), key=lambda item: item[:2]
        )
        self._ended = []
        dones = np.array([item[2].pop("ended") for item in ended], dtype=bool)
        super()._update_info_buffer([item[2] for item in ended], dones)
        terms = vec.find(self.env)
        if terms is not None:
            terms.exchange()

    def whole(self, rollout: Rollout) -> Rollout:
        """``rollout`` with the environments of all: (T, n, ...) -> (T, N, ...)."""
        mine = {name: getattr(rollout, name) for name in _BY_ENVIRONMENT}
        parts = self._processes.gather((mine, rollout.last_dones))
        joined = {name: _beside([part[name] for part, _ in parts], axis=1) for name in _BY_ENVIRONMENT}
        return replace(rollout, **joined, last_dones=np.concatenate([dones for _, dones in parts]))

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_processes", "_ended", "all_envs"]


@cache
def _together(cls: type[BaseAlgorithm]) -> type[BaseAlgorithm]:
    return type(cls.__name__, (Together, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})


def divided(cls: type[BaseAlgorithm], processes: Processes) -> type[BaseAlgorithm]:
    """``cls``, which has an update of ours, for one of several processes; under the same name."""
    return type(cls.__name__, (_together(cls),), {"__module__": cls.__module__, "_processes": processes})


def environments(model: BaseAlgorithm) -> int:
    """How many environments train ``model``, in all processes."""
    return model.all_envs if isinstance(model, Together) else model.n_envs


def first_environment(model: BaseAlgorithm) -> int:
    return model._processes.part(model.all_envs).start if isinstance(model, Together) else 0


def seed_environments(model: BaseAlgorithm, seed: int) -> None:
    """Environment i of all gets seed + i, as in one process."""
    assert model.env is not None
    model.env.seed(seed + first_environment(model))


class SharedMeanStd(RunningMeanStd):
    """Running statistics over the rows of all processes. Pickled, it is the one of Stable-Baselines3."""

    def __init__(self, plain: RunningMeanStd, processes: Processes) -> None:
        self.__dict__.update(plain.__dict__)
        self.processes = processes

    def update(self, arr: Array) -> None:
        rows = torch.zeros((len(arr) * self.processes.count, *arr.shape[1:]), dtype=torch.from_numpy(arr[:0]).dtype)
        rows[self.processes.part(len(rows))] = torch.from_numpy(arr)
        super().update(self.processes.sum(rows).numpy())

    def __reduce__(self) -> Any:
        state = {name: value for name, value in self.__dict__.items() if name != "processes"}
        return object.__new__, (RunningMeanStd,), state


def share_statistics(venv: VecNormalize, processes: Processes) -> VecNormalize:
    if venv.norm_obs and isinstance(venv.obs_rms, dict):
        venv.obs_rms = {key: SharedMeanStd(part, processes) for key, part in venv.obs_rms.items()}
    elif venv.norm_obs:
        venv.obs_rms = SharedMeanStd(venv.obs_rms, processes)
    venv.ret_rms = SharedMeanStd(venv.ret_rms, processes)
    return venv


_BY_ENVIRONMENT = ("obs", "actions", "terms", "rewards", "values", "advantages", "episode_starts", "raw_obs")


def _beside(parts: Sequence[Any], axis: int) -> Any:
    if isinstance(parts[0], dict):
        return {key: _beside([part[key] for part in parts], axis) for key in parts[0]}
    return None if parts[0] is None else np.concatenate(parts, axis)


def _each(value: Any, function: Any) -> Any:
    return {key: function(part) for key, part in value.items()} if isinstance(value, dict) else function(value)


def check(env: EnvConfig, processes: Processes) -> None:
    """Whether the environments of a configuration can be divided."""
    if env.vec not in ("dummy", "subproc"):
        raise ConfigError(
            f"environments of vec: {env.vec} are seeded together, so that a part of them is no part of the whole",
            where="env.vec",
            do="Use vec: dummy or subproc, or train in one process",
        )
    check_divided(env.n_envs, processes)

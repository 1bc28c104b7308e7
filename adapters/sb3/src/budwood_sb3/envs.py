"""Environments as Stable-Baselines3's own ``make_vec_env`` makes them, plus what plugins wrap around each.

With no plugin the result is the one a bare script gets, down to the seeds. Monitor stays innermost, so episode returns
in the log are the environment's own, whatever a plugin does to the reward.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import gymnasium as gym
from stable_baselines3.common.env_util import is_wrapped, make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from budwood.api import ConfigError, Contributed
from budwood_sb3 import env_state
from budwood_sb3.config import EnvConfig
from budwood_sb3.fast import FastVecEnv
from budwood_sb3.vec_sources import MakeVecEnv
from budwood_sb3.workers import WorkerVecEnv

Role = Literal["train", "eval"]
WrapEnv = Callable[[Any, str], Any]
"""(factory of one environment, role) -> factory."""

MISSING_EXTRA = {"imageio": "mujoco", "mujoco": "mujoco", "packaging": "mujoco", "envpool": "envpool"}


def make(
    config: EnvConfig,
    seed: int,
    role: Role = "train",
    n_envs: int | None = None,
    wrap: WrapEnv | None = None,
    bring: Contributed[MakeVecEnv] | None = None,
    first: int = 0,
) -> VecEnv:
    """A seeded VecEnv of ``n_envs`` (default: as configured) environments; ``bring`` makes it if a plugin brings it.

    ``first``: the number of the first one among all that train, where this process has a part of them.
    """
    count = config.n_envs if n_envs is None else n_envs
    if bring is not None:
        _nothing_to_wrap(wrap, f"{bring.who} steps its environments together")
        return bring.value(config.id, count, seed, config.args, role)
    if config.vec == "envpool":
        from budwood_sb3.envpool import EnvPoolVecEnv

        _nothing_to_wrap(wrap, "EnvPool steps its environments in C++")
        return EnvPoolVecEnv(config.id, count, seed, config.args)
    source = _source(config.id)
    try:
        return make_vec_env(
            source,
            n_envs=count,
            seed=seed,
            start_index=first,
            vec_env_cls=_vec_class(config),
            env_kwargs=dict(config.args),
            wrapper_class=_Finish(wrap, role),  # any callable of one environment will do
        )
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise missing_dependency(config.id, error) from error
    except TypeError as error:
        raise ConfigError(f"{config.id} refuses its arguments: {error}", where="env.args") from error


def _nothing_to_wrap(wrap: WrapEnv | None, why: str) -> None:
    if wrap is not None:
        raise ConfigError(
            f"{why}, so a plugin's build_env has nothing to wrap",
            where="env.vec",
            do="Use vec: dummy, or remove the plugin that builds or wraps environments",
        )


def _vec_class(config: EnvConfig) -> type[DummyVecEnv] | type[SubprocVecEnv]:
    if config.vec == "subproc":
        return WorkerVecEnv
    return FastVecEnv if config.fast else DummyVecEnv


@dataclass
class _Finish:
    """What is done to an environment after Monitor: a plugin's wrappers, then the functions that save its state.

    An object rather than a closure, so that it can be sent to the workers of a SubprocVecEnv.
    """

    wrap: WrapEnv | None
    role: Role
    __name__: str = field(default="wrapper", init=False)

    def __call__(self, env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        if self.wrap is not None:
            wrapped = self.wrap(lambda: env, self.role)()
            env = wrapped if is_wrapped(wrapped, Monitor) else Monitor(wrapped)
        return env_state.attach(env)


def _source(name: str) -> str | Callable[..., gym.Env[Any, Any]]:
    """The id itself if Gymnasium knows it, or the class of ``module:Class``."""
    module_name, _, attribute = name.partition(":")
    if attribute:
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise ConfigError(
                f"cannot import {module_name}: {error}", where="env.id", do="Install it, or correct the module's name"
            ) from error
        if hasattr(module, attribute):
            source: Callable[..., gym.Env[Any, Any]] = getattr(module, attribute)
            return source
    try:
        gym.spec(attribute or name)
    except gym.error.UnregisteredEnv:
        raise (unknown_in(module, attribute) if attribute else unknown(name)) from None
    except gym.error.Error as error:
        raise ConfigError(f"cannot make {name}: {error}", where="env.id") from error
    return name


def unknown(name: str) -> ConfigError:
    return _unknown(f"no environment is called {name!r}", name, list(gym.registry))


def unknown_in(module: ModuleType, name: str) -> ConfigError:
    known = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, gym.Env)]
    return _unknown(f"{module.__name__} neither defines nor registers {name!r}", name, known)


def _unknown(what: str, name: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return ConfigError(what, where="env.id", do=f"{hint}A class of your own is written module:Class")


def missing_dependency(env: str, error: Exception) -> ConfigError:
    text = f"{getattr(error, 'name', None) or ''} {error} {error.__cause__ or ''}"
    extra = next((extra for module, extra in MISSING_EXTRA.items() if module in text), None)
    return ConfigError(
        f"{env} cannot be made: {error}",
        where="env.id",
        do=f'pip install "budwood-sb3[{extra}]"' if extra else "Install what it needs",
    )

"""LeRobot's environments of the section ``env``."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from lerobot.envs import make_env

from budwood.api import ConfigError
from budwood_lerobot.config import EnvConfig
from budwood_lerobot.native import flat


def vectors_of(section: EnvConfig, n: int) -> dict[str, dict[int, Any]]:
    """suite -> task -> a vector of ``n`` environments.

    :raises ConfigError: they cannot be made.
    """
    try:
        made: dict[str, dict[int, Any]] = make_env(section.native(), n_envs=n, use_async_envs=section.use_async_envs)
    except (ImportError, ValueError, RuntimeError, OSError, gym.error.Error) as error:
        raise ConfigError(
            f"LeRobot cannot make the environment {section.type}: {flat(error)}",
            where="env",
            do="Check its task, and that its package is installed",
        ) from error
    return made


COUNTED, STRIDE = ("episode_index", "init_state_id"), "_reset_stride"
"""Where LIBERO and RoboCasa keep which environment of a vector this is, and of how many: episodes begin accordingly."""


def numbered(vector: Any, first: int, total: int) -> None:
    """Environments that number themselves from 0 are told that theirs are ``first`` and following, of ``total``."""
    if vector.num_envs == total:
        return
    for name in (*COUNTED, STRIDE):
        if all(vector.call("has_wrapper_attr", name)):
            inner = getattr(vector, "_env", vector)  # of a lazy vector of LeRobot, made by the call
            values = vector.get_attr(name)
            inner.set_attr(name, [total if name == STRIDE else first + value for value in values])

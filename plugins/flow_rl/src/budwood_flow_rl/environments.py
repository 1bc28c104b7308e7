"""The environments of demonstrations: vectors for observations and for actions, made from what the demonstrations say."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from budwood.api import ConfigError

if TYPE_CHECKING:
    import gymnasium as gym


def factory(env_id: str, env_args: Mapping[str, Any]) -> Callable[[], gym.Env[Any, Any]]:
    """Makes one environment: a Gymnasium id, ``module:Id``, or ``module:Class``, which imports that module.

    The first is made here, to find out what is wrong with it. :raises ConfigError: it cannot be made, or its
    observations or actions are no vectors.
    """
    import gymnasium as gym

    source = _class(env_id)

    def make() -> gym.Env[Any, Any]:
        return gym.make(env_id, **env_args) if source is None else source(**env_args)

    try:
        env = make()
    except (gym.error.Error, ImportError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{env_id} cannot be made with {json.dumps(dict(env_args))}: {error}",
            where="environment",
            do="Correct its name or its arguments, or install what it needs",
        ) from error
    for name, space in (("observations", env.observation_space), ("actions", env.action_space)):
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise ConfigError(
                f"the {name} of {env_id} are {space}, and flow policies on states need vectors",
                where="environment",
                do="Wrap it in a class of your own that flattens them, and name it module:Class",
            )
    env.close()
    return make


def _class(env_id: str) -> Callable[..., gym.Env[Any, Any]] | None:
    """The class of ``module:Class``; None for an id that Gymnasium makes itself."""
    module, _, attribute = env_id.partition(":")
    if not attribute:
        return None
    try:
        found: Callable[..., gym.Env[Any, Any]] | None = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise ConfigError(
            f"cannot import {module}: {error}", where="environment", do="Install it, or correct the module's name"
        ) from error
    return found

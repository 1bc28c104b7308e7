"""The environments of demonstrations: vectors for observations and for actions, made from what the demonstrations say."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from budwood.api import ConfigError

if TYPE_CHECKING:
    import gymnasium as gym


OWN = "budwood_flow_rl"


def factory(env_id: str, env_args: Mapping[str, Any], *, from_file: bool = False) -> Callable[[], gym.Env[Any, Any]]:
    """Makes one environment: a Gymnasium id, ``module:Id``, or ``module:Class``, which imports that module.

    ``from_file``: a file says so and no person, so only modules of this package may be imported. The first environment is
    made here, to find out what is wrong with it. :raises ConfigError: it may not be or cannot be made, is no environment,
    or its observations or actions are no vectors.
    """
    import gymnasium as gym

    module, colon, _ = env_id.partition(":")
    if from_file and colon and module != OWN and not module.startswith(f"{OWN}."):
        raise ConfigError(
            f"a file names the environment {env_id}, and making it would import and run the module {module}",
            where="environment",
            do=f"If you trust that module, name it yourself: --env {env_id}",
        )
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


def _class(env_id: str) -> type[gym.Env[Any, Any]] | None:
    """The class of ``module:Class``; None for an id that Gymnasium makes itself."""
    import gymnasium as gym

    module, _, attribute = env_id.partition(":")
    if not attribute:
        return None
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except (ImportError, TypeError, ValueError) as error:  # the last two for a name that cannot be a module's
        raise ConfigError(
            f"cannot import {module}: {error}", where="environment", do="Install it, or correct the module's name"
        ) from error
    if found is not None and not (isinstance(found, type) and issubclass(found, gym.Env)):
        raise ConfigError(
            f"{env_id} is no environment: {attribute} of {module} is no class of gymnasium.Env",
            where="environment",
            do="Name the class of an environment as module:Class",
        )
    return found

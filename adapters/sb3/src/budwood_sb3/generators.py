"""All random generators a training draws from, as a state tree: python, numpy, torch, spaces."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm

from budwood.api import StateTree


def generators(model: BaseAlgorithm) -> StateTree:
    """The state of every generator outside of the environments that ``model`` draws from."""
    version, words, gauss = random.getstate()
    algorithm, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "words": np.array(words, np.uint32), "gauss": gauss},
        "numpy": {"algorithm": algorithm, "keys": keys, "position": position, "gauss": [has_gauss, cached]},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(model.device) if model.device.type == "cuda" else None,
        "spaces": [space_generators(model.observation_space), space_generators(model.action_space)],
    }


def set_generators(model: BaseAlgorithm, state: StateTree) -> None:
    """The inverse of :func:`generators`."""
    python, legacy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    np.random.set_state((legacy["algorithm"], legacy["keys"], legacy["position"], *legacy["gauss"]))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and model.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], model.device)
    set_space_generators(model.observation_space, state["spaces"][0])
    set_space_generators(model.action_space, state["spaces"][1])


def space_generators(space: spaces.Space[Any]) -> StateTree:
    """The generators of a space and its parts; they exist only once drawn from or seeded."""
    parts = [space_generators(part) for part in _parts(space)]
    return {"random": generator_state(space._np_random), "parts": parts}


def set_space_generators(space: spaces.Space[Any], state: StateTree) -> None:
    space._np_random = set_generator(space._np_random, state["random"])  # type: ignore[assignment]  # None until drawn from
    for part, saved in zip(_parts(space), state["parts"], strict=True):
        set_space_generators(part, saved)


def generator_state(generator: np.random.Generator | None) -> StateTree | None:
    return None if generator is None else dict(generator.bit_generator.state)


def set_generator(current: np.random.Generator | None, state: StateTree | None) -> np.random.Generator | None:
    """``current`` itself, put into ``state``, where it is of the same kind: others may hold it too."""
    if state is None:
        return None
    if current is None or type(current.bit_generator).__name__ != state["bit_generator"]:
        return set_generator(np.random.Generator(getattr(np.random, state["bit_generator"])()), state)
    current.bit_generator.state = state
    return current


def _parts(space: spaces.Space[Any]) -> list[spaces.Space[Any]]:
    if isinstance(space, spaces.Dict):
        return list(space.spaces.values())
    return list(space.spaces) if isinstance(space, spaces.Tuple | spaces.OneOf) else []

"""An episode of a flow policy on Stable-Baselines3 without noise, as frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, Literal

import torch

from budwood.api import Array
from budwood_flow_rl import environments
from budwood_flow_rl.film import FRAMES, Show
from budwood_flow_rl.start import FlowStart


def played(
    start: FlowStart, env_args: Mapping[str, Any], model: Any, seed: int, show: Show
) -> tuple[float, Literal[""]]:
    """In an environment of its own, and without touching the generators of the training. -> decisions a second, no words."""
    assert start.env_id is not None
    env = start.wrap_env(environments.factory(start.env_id, {**env_args, "render_mode": "rgb_array"})())
    with closing(env), torch.random.fork_rng():
        torch.manual_seed(seed)
        episode(env, lambda obs: model.predict(obs, deterministic=True)[0], seed, show)
    return env.metadata.get("render_fps", 30) / start.shape.execute, ""


def episode(env: Any, act: Callable[[Array], Array], seed: int, show: Show) -> None:
    """Shows the first state, and the state after each decision of the first ``FRAMES``."""
    obs, _ = env.reset(seed=seed)
    show(env.render())
    for _ in range(FRAMES - 1):
        obs, _, terminated, truncated, _ = env.step(act(obs))
        show(env.render())
        if terminated or truncated:
            break

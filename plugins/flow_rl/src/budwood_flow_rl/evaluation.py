"""Episodes of a saved flow without noise: K steps of its ordinary differential equation, a chunk of actions executed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from budwood.api import Array, ConfigError
from budwood_flow_rl import environments
from budwood_flow_rl.chunks import ActionScale
from budwood_flow_rl.diffusion import Diffusion, denoised
from budwood_flow_rl.families import sample
from budwood_flow_rl.saved import SavedFlow


@dataclass(frozen=True)
class Returns:
    """``returns`` and ``lengths`` (E,), an entry an episode."""

    returns: Array
    lengths: Array


def evaluate(
    flow: SavedFlow,
    *,
    episodes: int = 20,
    steps: int | None = None,
    n_envs: int = 10,
    seed: int = 20_000,
    env_id: str | None = None,
    env_args: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Returns:
    """Play ``episodes`` with ``steps`` = K integration steps, by default those of :func:`steps_of`.

    ``env_id`` replaces the environment of the demonstrations, or repeats it where it names a module, which is imported
    on no file's word.

    Each chunk starts from x_0 ~ N(0, I) of the generator ``seed``: without noise is not without chance. The sample is
    clamped to [-1, 1], the range of the demonstrations, and its actions to the bounds of the environment. Environment i of
    n plays (episodes + i) // n episodes, so short ones are not preferred.

    :raises ConfigError: there is no environment, its shapes are not the flow's, or K is not the policy's.
    """
    name = env_id or flow.meta.env_id
    args = flow.meta.env_args if env_args is None and name == flow.meta.env_id else env_args or {}
    if name is None:
        raise ConfigError("the demonstrations do not say which environment they are of", do="Name it with --env")
    make, n = environments.factory(name, args, from_file=env_id is None), min(n_envs, episodes)
    envs = [make() for _ in range(n)]
    sizes = [space.shape[0] for space in (envs[0].observation_space, envs[0].action_space)]  # type: ignore[index]
    flow.require(where=name, obs_dim=sizes[0], action_dim=sizes[1])
    act, data = _actor(flow, steps_of(flow, steps), seed), flow.normalisation.actions
    scale = ActionScale(envs[0].action_space, (data.centre.numpy(), data.radius.numpy()))  # type: ignore[arg-type]
    quota = (episodes + np.arange(n)) // n
    returns: list[float] = []
    lengths: list[int] = []
    running = np.zeros(n)
    length = np.zeros(n, dtype=int)
    seen = np.stack([env.reset(seed=seed + i)[0] for i, env in enumerate(envs)]).astype(np.float32)
    while (quota > 0).any():
        active = np.flatnonzero(quota > 0)
        for i, chunk in zip(active, act(seen[active]), strict=True):
            env = envs[i]
            for action in scale(chunk)[0]:
                seen[i], reward, terminated, truncated, _ = env.step(action)
                running[i] += float(reward)
                length[i] += 1
                if terminated or truncated:
                    returns.append(float(running[i]))
                    lengths.append(int(length[i]))
                    running[i], length[i], quota[i] = 0.0, 0, quota[i] - 1
                    seen[i] = env.reset()[0]
                    break
        progress(len(returns))
    for env in envs:
        env.close()
    return Returns(np.array(returns), np.array(lengths))


def steps_of(flow: SavedFlow, asked: int | None = None) -> int:
    """K: what a peer of flows was made for; for a flow, which takes any, what is ``asked``, by default those of the run
    that it comes from, else 4.

    :raises ConfigError: another K is asked of a peer.
    """
    own: int | None = getattr(flow.field, "steps", None)
    if own is not None and asked not in (None, own):
        raise ConfigError(
            f"the saved {flow.field.name} policy takes {own} steps, not {asked}",
            where="--steps",
            do=f"Leave it out, or set it to {own}",
        )
    return own or asked or flow.meta.source.get("steps") or 4


def _actor(flow: SavedFlow, steps: int, seed: int) -> Callable[[Array], Array]:
    """Raw observations (n, O) -> chunks of scaled actions (n, C, D), not clamped."""
    generator = torch.Generator().manual_seed(seed)
    shape, diffusion = (flow.field.horizon, flow.field.action_dim), isinstance(flow.field, Diffusion)

    def act(observations: Array) -> Array:
        o = flow.normalisation.observations.scale(torch.from_numpy(observations))
        x0 = torch.randn((len(o), *shape), generator=generator)
        with torch.no_grad():
            sampled: Array = (denoised if diffusion else sample)(flow.field, o, steps, x0).numpy()
        return sampled[:, : flow.meta.chunk]

    return act

"""Demonstrations of a policy that Stable-Baselines3 trained: a run of budwood, or a ``model.zip``.

A run's checkpoint is JSON and safetensors. A ``model.zip`` and a ``vecnormalize.pkl`` are pickles: loading one runs
whatever its author put there, so the caller has to say that it may be trusted.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from budwood.api import Array, ConfigError
from budwood_flow_rl import environments
from budwood_flow_rl.demonstrations import Demonstrations, concatenated

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

ALGORITHMS: Mapping[str, tuple[str, str]] = {
    **{name.lower(): ("stable_baselines3", name) for name in ("PPO", "A2C", "SAC", "TD3", "DDPG")},
    **{name.lower(): ("sb3_contrib", name) for name in ("TRPO", "TQC", "CrossQ", "ARS")},
    "recurrent_ppo": ("sb3_contrib", "RecurrentPPO"),
}
"""Those with continuous actions. A ``model.zip`` does not say which one it is of."""

VERSIONS = ("budwood-flow-rl", "gymnasium", "mujoco", "numpy", "stable-baselines3", "torch")


@dataclass(frozen=True)
class Expert:
    """A trained policy and where it acts. ``normalise``: raw observations (n, O) -> what the policy was trained on."""

    model: BaseAlgorithm
    env_id: str
    env_args: Mapping[str, Any]
    normalise: Callable[[Any], Any]
    source: str


@contextmanager
def of_run(reference: str, steps: int | None = None) -> Iterator[Expert]:
    """The policy of a budwood run at its checkpoint of ``steps``, by default the newest. Nothing is unpickled.

    It acts in the run's plain environment: reward terms and environment wrappers of plugins are left out.

    :raises ConfigError: the run was not trained by Stable-Baselines3, or its policy is a fine-tuned flow.
    """
    from budwood import restored

    with restored(reference, steps) as run:
        if run.config["trainer"]["kind"] != "sb3":
            raise ConfigError(
                f"it was trained by {run.config['trainer']['kind']}, and demonstrations are recorded of sb3",
                where=run.run_id,
                do="Record a run whose trainer.kind is sb3, or read a dataset with --from",
            )
        if "flow_rl" in run.config["plugins"]:
            raise ConfigError(
                "a fine-tuned flow cannot be recorded: its actions are whole chains, and no environment takes those",
                where=run.run_id,
                do="Record the run that its demonstrations came from, or another one without flow_rl; budwood flow-rl export "
                "makes a saved flow of it",
            )
        model = run.trainer.native
        normalize = model.get_vec_normalize_env()
        yield Expert(
            model=model,
            env_id=run.config["env"]["id"],
            env_args=run.config["env"]["args"],
            normalise=_raw if normalize is None else normalize.normalize_obs,
            source=f"run {run.run_id}, {run.checkpoint.name}",
        )


def of_zip(
    path: Path, algo: str, env_id: str, env_args: Mapping[str, Any], vecnormalize: Path | None = None, *, trust: bool
) -> Expert:
    """The policy of a ``model.zip``, with the observation statistics of ``vecnormalize`` if it was trained on normalised
    observations. Both are unpickled by Stable-Baselines3's own loading, which ``trust`` has to allow.

    :raises ConfigError: it may not be trusted, cannot be loaded, or is of another algorithm.
    """
    if not trust:
        raise ConfigError(
            "it contains pickles, and loading a pickle runs whatever code its author put there",
            where=str(path),
            do="If you made it or trust who did, say so with --trust. A run of budwood needs no trust: name its folder",
        )
    from stable_baselines3.common.vec_env import VecNormalize

    module, name = ALGORITHMS[algo]
    try:
        model = getattr(importlib.import_module(module), name).load(path, device="cpu")
        normalize = (
            None if vecnormalize is None else VecNormalize.load(str(vecnormalize), _vector(env_id, env_args, 1, 0))
        )
    except ConfigError:
        raise
    except Exception as error:  # unpickling raises anything
        raise ConfigError(
            f"it cannot be loaded as {name}: {type(error).__name__}: {error}",
            where=str(path),
            do="Name the algorithm that it was trained with by --algo, and its own vecnormalize.pkl",
        ) from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    normalise = _raw if normalize is None else normalize.normalize_obs
    return Expert(model, env_id, env_args, normalise, f"{path.name} ({name}, sha256 {digest})")


def record(
    expert: Expert,
    transitions: int,
    *,
    n_envs: int = 8,
    seed: int = 0,
    deterministic: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Demonstrations:
    """At least ``transitions`` steps of ``expert`` (the next multiple of ``n_envs``), with the exploration noise that it
    trained with unless ``deterministic``. ``progress`` is told the steps so far.

    Rows hold raw observations, the actions as they were executed, within bounds, and the environment's own rewards.
    """
    from stable_baselines3.common.utils import set_random_seed

    venv = _vector(expert.env_id, expert.env_args, n_envs, seed)
    for name in ("observation_space", "action_space"):
        made, trained = getattr(venv, name), getattr(expert.model, name)
        if made != trained:
            raise ConfigError(
                f"the policy was trained with the {name.replace('_', ' ')} {trained}, and {expert.env_id} has {made}",
                where="environment",
                do="Name the environment that it was trained in, without wrappers",
            )
    set_random_seed(seed)
    act = _actor(expert, n_envs, deterministic)
    length = -(-transitions // n_envs)
    observations = np.empty((length, n_envs, *venv.observation_space.shape), np.float32)  # type: ignore[misc]
    actions = np.empty((length, n_envs, *venv.action_space.shape), np.float32)  # type: ignore[misc]
    rewards = np.empty((length, n_envs), np.float32)
    dones, timeouts = np.zeros((2, length, n_envs), dtype=bool)
    seen: Any = venv.reset()
    starts = np.ones(n_envs, dtype=bool)
    for t in range(length):
        observations[t], actions[t] = seen, act(seen, starts)
        seen, rewards[t], dones[t], infos = venv.step(actions[t])
        timeouts[t] = [bool(info.get("TimeLimit.truncated", False)) for info in infos]
        starts = dones[t]
        progress((t + 1) * n_envs)
    venv.close()
    episodes, terminated, truncated = [], [], []
    for i in range(n_envs):
        ends = np.flatnonzero(dones[:, i]) + 1
        cuts = [0, *ends, *([] if dones[-1, i] else [length])]
        for begin, end in pairwise(cuts):
            episodes.append((observations[begin:end, i], actions[begin:end, i], rewards[begin:end, i]))
            truncated.append(bool(timeouts[end - 1, i]))
            terminated.append(bool(dones[end - 1, i]) and not truncated[-1])
    about = {
        "source": expert.source,
        "seed": seed,
        "n_envs": n_envs,
        "deterministic": deterministic,
        "versions": versions(),
    }
    return concatenated(
        episodes, terminated, truncated, env_id=expert.env_id, env_args=dict(expert.env_args), about=about
    )


def versions() -> dict[str, str]:
    """Of what a recording depends on, as far as it is installed."""
    return {name: version for name in VERSIONS if (version := _version(name))}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _actor(expert: Expert, n: int, deterministic: bool) -> Callable[[Array, Array], Array]:
    """(observations (n, O), whether an episode begins (n,)) -> executed actions (n, D).

    Exploration is what Stable-Baselines3 explores with while it collects: the policy's own distribution, the matrices of
    gSDE drawn as often, and ``action_noise`` in the scale [-1, 1] where the algorithm has one.
    """
    model, policy = expert.model, expert.model.policy
    noise = None if deterministic else _noise(getattr(model, "action_noise", None), n)
    gsde = model.use_sde and not deterministic
    every = max(model.sde_sample_freq, 0) or getattr(model, "n_steps", 1)
    state: Any = None
    step = 0

    def act(observations: Array, starts: Array) -> Array:
        nonlocal state, step
        if gsde and step % every == 0:
            policy.reset_noise(n)  # type: ignore[operator]
        step += 1
        actions, state = model.predict(expert.normalise(observations), state, starts, deterministic=deterministic)
        if noise is not None:
            noise.reset(np.flatnonzero(starts).tolist())
            actions = policy.unscale_action(np.clip(policy.scale_action(actions) + noise(), -1.0, 1.0))
        return actions

    return act


def _noise(noise: Any, n: int) -> Any:
    from stable_baselines3.common.noise import VectorizedActionNoise

    if noise is None or (isinstance(noise, VectorizedActionNoise) and noise.n_envs == n):
        return noise
    return VectorizedActionNoise(getattr(noise, "base_noise", noise), n)


def _vector(env_id: str, env_args: Mapping[str, Any], n_envs: int, seed: int) -> VecEnv:
    from stable_baselines3.common.env_util import make_vec_env

    return make_vec_env(environments.factory(env_id, env_args), n_envs=n_envs, seed=seed)


def _raw(observations: Array) -> Array:
    return observations

"""A fresh policy in the middle of a run: networks, optimisers and temperatures begin again, experience is kept."""

from __future__ import annotations

import warnings

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from budwood_sb3.generators import generators, set_generators
from budwood_sb3.together import environments


def reset_policy(model: BaseAlgorithm, seed: int) -> None:
    """New networks initialised under ``seed`` and new optimisers; the random generators of the run stay where they are.

    Observation statistics, step count and replay buffer stay. Every environment starts a new episode, so that no
    episode spans two policies.
    """
    kept = generators(model)
    run_seed, rollout_buffer = model.seed, getattr(model, "rollout_buffer", None)
    model.seed = seed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the constructor has given these already
        model._setup_model()
    model.seed = run_seed
    if rollout_buffer is not None:
        model.rollout_buffer = rollout_buffer  # type: ignore[attr-defined]  # the rollout loop already holds this one
    assert model.env is not None
    model.env.unwrapped._reset_seeds()  # _setup_model seeded the next episodes as well
    set_generators(model, kept)
    restart_episodes(model)


def restart_episodes(model: BaseAlgorithm) -> None:
    assert model.env is not None
    model._last_obs = model.env.reset()  # type: ignore[assignment]
    model._last_episode_starts = np.ones(model.n_envs, dtype=bool)
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        model._last_original_obs = normalize.get_original_obs()
    if model.action_noise is not None:
        model.action_noise.reset()
    if model.use_sde:
        getattr(model, "actor", model.policy).reset_noise(environments(model))  # type: ignore[operator]

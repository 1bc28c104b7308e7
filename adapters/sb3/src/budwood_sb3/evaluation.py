"""Episodes of the current policy on environments of their own, counted as Stable-Baselines3's ``evaluate_policy`` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from budwood.api import Array, Evaluation, StepBatch
from budwood_sb3 import vec
from budwood_sb3.batches import ArrayBatch, rows_of, timeouts, with_terminal_observations
from budwood_sb3.generators import generators, set_generators
from budwood_sb3.together import environments

Observer = Callable[[StepBatch], None]


class Evaluations:
    """Evaluates ``model``; keeps its environments between calls. ``make(n)`` makes a VecEnv of ``n``."""

    def __init__(self, model: BaseAlgorithm, make: Callable[[int], VecEnv]) -> None:
        self._model, self._make = model, make
        self._envs: dict[int, VecEnv] = {}

    def run(self, episodes: int, seed: int, observer: Observer | None = None) -> Evaluation:
        with _generators_kept(self._model):
            n = min(environments(self._model), episodes)
            if n not in self._envs:
                self._envs[n] = self._make(n)
            return evaluate(self._model, self._envs[n], episodes, seed, observer)

    def close(self) -> None:
        for venv in self._envs.values():
            venv.close()
        self._envs.clear()


@contextmanager
def _generators_kept(model: BaseAlgorithm) -> Any:
    saved = generators(model)
    try:
        yield
    finally:
        set_generators(model, saved)


def evaluate(
    model: BaseAlgorithm, venv: VecEnv, episodes: int, seed: int, observer: Observer | None = None
) -> Evaluation:
    """Deterministic actions, observation statistics of the training as they are now, and not changed.

    Environment ``i`` of ``n`` plays ``(episodes + i) // n`` episodes, so that short episodes are not preferred.
    """
    n = venv.num_envs
    quota = (episodes + np.arange(n)) // n
    played = np.zeros(n, dtype=int)
    total, length = np.zeros(n), np.zeros(n, dtype=int)
    returns: list[float] = []
    lengths: list[int] = []
    act, normalise = _actor(model, venv), _normaliser(model)
    arrays: Callable[[], Mapping[str, Array]] | None = getattr(venv, "info_arrays", None)

    venv.seed(seed)
    obs: Any = venv.reset()
    states: Any = None
    starts = np.ones(n, dtype=bool)
    steps, before = 0, vec.env_steps(venv)
    while (played < quota).any():
        actions, states = act(normalise(obs), states, starts)
        next_obs, rewards, dones, infos = venv.step(actions)
        steps += n
        total += rewards
        length += 1
        counting = played < quota
        if observer is not None:
            batch = _batch(counting, obs, actions, next_obs, rewards, dones, infos)
            if arrays is not None:
                batch = _with_arrays(batch, {key: value[counting] for key, value in arrays().items()})
            observer(batch)
        for i in np.flatnonzero(dones & counting):
            returns.append(float(total[i]))
            lengths.append(int(length[i]))
            played[i] += 1
        total[dones], length[dones] = 0.0, 0
        obs, starts = next_obs, dones
    if before is not None:
        steps = (vec.env_steps(venv) or 0) - before
    return Evaluation(np.array(returns), np.array(lengths), steps, seed)


def _actor(model: BaseAlgorithm, venv: VecEnv) -> Callable[[Any, Any, Array], tuple[Array, Any]]:
    if not hasattr(getattr(model, "rollout_buffer", None), "action_masks"):
        return lambda obs, states, starts: model.predict(obs, states, starts, deterministic=True)
    from sb3_contrib.common.maskable.utils import get_action_masks

    masked: Any = model
    return lambda obs, states, starts: masked.predict(
        obs, states, starts, deterministic=True, action_masks=get_action_masks(venv)
    )


def _normaliser(model: BaseAlgorithm) -> Callable[[Any], Any]:
    normalize = model.get_vec_normalize_env()
    return (lambda obs: obs) if normalize is None else normalize.normalize_obs


def _batch(
    counting: Array,
    obs: Any,
    actions: Array,
    next_obs: Any,
    rewards: Array,
    dones: Array,
    infos: Sequence[dict[str, Any]],
) -> StepBatch:
    """The rows that count, each info knowing its environment."""
    rows = np.flatnonzero(counting)
    batch = StepBatch()
    batch.obs = rows_of(obs, rows)
    batch.actions = actions[rows]
    batch.next_obs = rows_of(with_terminal_observations(next_obs, dones, infos) if dones.any() else next_obs, rows)
    batch.rewards = np.asarray(rewards, dtype=np.float64)[rows]
    batch.dones = dones[rows]
    chosen: list[Mapping[str, Any]] = [{**infos[i], "env_index": int(i)} for i in rows]
    batch.timeouts = timeouts(chosen) & batch.dones
    batch.infos = chosen
    return batch


def _with_arrays(batch: StepBatch, arrays: Mapping[str, Array]) -> ArrayBatch:
    richer = ArrayBatch()
    for name in StepBatch.__slots__:
        setattr(richer, name, getattr(batch, name))
    richer.arrays = arrays
    return richer

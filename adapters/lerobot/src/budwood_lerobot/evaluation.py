"""Episodes in LeRobot's environments by LeRobot's own evaluation, watched from outside.

LeRobot's ``eval_policy`` reports returns and successes; lengths, what a step cost and what an observer wants to see come from
a thin layer around each vector environment. Returns do too: LeRobot adds the reward of the step after an episode's last one,
which belongs to the next episode, wherever another environment of the batch runs longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lerobot.envs import make_env_pre_post_processors
from lerobot.scripts import lerobot_eval

from budwood.api import Array, Evaluation, StepBatch
from budwood_lerobot.config import EnvConfig
from budwood_lerobot.environments import vectors_of

Observer = Callable[[StepBatch], None]


def played(
    section: EnvConfig,
    policy: Any,
    preprocessor: Any,
    postprocessor: Any,
    episodes: int,
    seed: int,
    observer: Observer | None,
) -> Evaluation:
    """``episodes`` of each task. ``metrics``: ``success_rate``, ``reward_max``, and of several ``success_rate/SUITE/TASK``."""
    config = section.native()
    envs = watched(section, episodes, observer)
    before, after = make_env_pre_post_processors(env_cfg=config, policy_cfg=policy.config)
    with _without_bars(), torch.no_grad():
        info = lerobot_eval.eval_policy_all(
            envs=envs,
            policy=policy,
            env_preprocessor=before,
            env_postprocessor=after,
            preprocessor=preprocessor,
            postprocessor=postprocessor,
            n_episodes=episodes,
            start_seed=seed,
            max_parallel_tasks=config.max_parallel_tasks,
        )
    layers = [envs[task["task_group"]][task["task_id"]] for task in info["per_task"]]
    returns, lengths = (np.concatenate(parts) for parts in zip(*(layer.finished() for layer in layers), strict=True))
    metrics = {
        "success_rate": info["overall"]["pc_success"] / 100,
        "reward_max": info["overall"]["avg_max_reward"],
    }
    if len(layers) > 1:
        metrics |= {
            f"success_rate/{task['task_group']}/{task['task_id']}": float(np.mean(task["metrics"]["successes"]))
            for task in info["per_task"]
        }
    return Evaluation(returns, lengths, sum(layer.steps for layer in layers), seed, metrics)


def watched(section: EnvConfig, episodes: int, observer: Observer | None) -> dict[str, dict[int, Watched]]:
    """LeRobot's vector environments of every suite and task, each in a layer of its own.

    :raises ConfigError: they cannot be made.
    """
    made = vectors_of(section, min(section.n_envs, episodes))
    return {
        suite: {task: Watched(env, episodes, observer) for task, env in tasks.items()} for suite, tasks in made.items()
    }


class Watched:
    """Around a vector environment of n: passes everything on, and counts its first ``episodes`` episodes.

    It is no subclass: LeRobot's lazy environments are none of gymnasium's.
    """

    def __init__(self, env: Any, episodes: int, observer: Observer | None = None) -> None:
        self._env, self._left, self._observer = env, episodes, observer
        self.steps = 0
        """Environment steps, also of episodes that LeRobot plays and throws away."""
        self._batches: list[tuple[Array, Array]] = []
        self._begin(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def _begin(self, count: int) -> None:
        """A new batch of which the first ``count`` environments count."""
        self._returns, self._lengths = np.zeros(count), np.zeros(count, dtype=np.int64)
        self._running = np.ones(count, dtype=bool)

    def reset(self, **given: Any) -> Any:
        self._keep()
        self._begin(min(self._left, self._env.num_envs))
        self._obs, info = self._env.reset(**given)
        return self._obs, info

    def step(self, actions: Array) -> Any:
        obs, rewards, terminated, truncated, info = self._env.step(actions)
        self.steps += self._env.num_envs
        rows = np.flatnonzero(self._running)
        if self._observer is not None and len(rows):
            self._observer(batch_of(rows, self._obs, actions, obs, rewards, terminated, truncated, info))
        self._returns[rows] += rewards[rows]
        self._lengths[rows] += 1
        self._running[rows] = ~(terminated | truncated)[rows]
        self._obs = obs
        return obs, rewards, terminated, truncated, info

    def _keep(self) -> None:
        if len(self._returns):
            self._batches.append((self._returns, self._lengths))
            self._left -= len(self._returns)

    def finished(self) -> tuple[Array, Array]:
        """Returns and lengths in the order of LeRobot's episodes."""
        self._keep()
        self._begin(0)
        returns, lengths = zip(*self._batches, strict=True)
        return np.concatenate(returns), np.concatenate(lengths)


def batch_of(
    rows: Array,
    obs: Any,
    actions: Array,
    next_obs: Any,
    rewards: Array,
    terminated: Array,
    truncated: Array,
    info: Mapping[str, Any],
) -> StepBatch:
    """The rows that still count, the last observation of an episode in place of the first of the next."""
    batch = StepBatch()
    final: Sequence[Any] = info.get("final_obs", [None] * len(rewards))
    batch.obs, batch.actions = rows_of(obs, rows), actions[rows]
    batch.next_obs = rows_of(next_obs, rows)
    for place, row in enumerate(rows):
        if final[row] is not None:
            _put(batch.next_obs, place, final[row])
    batch.rewards = np.asarray(rewards, dtype=np.float64)[rows]
    batch.dones = (terminated | truncated)[rows]
    batch.timeouts = (truncated & ~terminated)[rows]
    batch.infos = [{**_info(info, row), "env_index": int(row)} for row in rows]
    return batch


def rows_of(obs: Any, rows: Array) -> Any:
    """Rows of an array, or of every array of nested mappings."""
    if isinstance(obs, Mapping):
        return {key: rows_of(value, rows) for key, value in obs.items()}
    return obs[rows]


def _put(target: Any, place: int, value: Any) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _put(target[key], place, item)
    else:
        target[place] = value


def _info(info: Mapping[str, Any], row: int) -> dict[str, Any]:
    """One environment's infos; ``_name`` says which environments gave ``name``, and what ended is under ``final_info``."""
    ended = info.get("final_info")
    found = _info(ended, row) if isinstance(ended, Mapping) and info.get("_final_info", ())[row] else {}
    for key, value in info.items():
        given = info.get(f"_{key}")
        if (
            given is not None
            and given[row]
            and key not in ("final_info", "final_obs")
            and not isinstance(value, Mapping)
        ):
            found.setdefault(key, value[row])
    return found


@contextmanager
def _without_bars() -> Iterator[None]:
    """A run has one line of its own; LeRobot leaves its bars out where it believes itself under Slurm."""
    kept = lerobot_eval.inside_slurm
    lerobot_eval.inside_slurm = lambda: True
    try:
        yield
    finally:
        lerobot_eval.inside_slurm = kept

"""Reward terms at the one place they belong: around the environments and inside VecNormalize.

So what VecNormalize scales is the shaped reward, and what Monitor logs stays the environment's own return. ``n``
environments, ``K`` columns; column 0 is the environment's own reward. Everything is float64 until the last cast, without
which weights of 1 would not reproduce the environment's reward bit for bit.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from budwood.api import (
    ALONE,
    NATIVE,
    Array,
    Contributed,
    ContributionError,
    Contributions,
    Processes,
    RewardCombination,
    StateTree,
    StepBatch,
    TermColumn,
)
from budwood_sb3.batches import ArrayBatch, timeouts, with_terminal_observations

EPISODES = 100
"""Over how many episodes the shaped return is averaged, as Stable-Baselines3 does for its own."""


class WeightedSum:
    """The default combination: env.reward + sum of weight x term, with the weights the terms were declared with."""

    version = 0
    needs_obs = False

    def bind(self, columns: Sequence[TermColumn]) -> None:
        self.weights = np.array([column.weight for column in columns], dtype=np.float64)

    def __call__(self, terms: Array, obs: Any | None) -> Array:
        combined: Array = terms.dot(self.weights)
        return combined


COUNT = "budwood_env_steps"
"""Attribute of a wrapper of one environment: how many steps of it were taken since it was made or its state was loaded."""


class TermVecEnv(VecEnvWrapper):
    """Fills the matrix of reward terms and returns their combination as the reward.

    ``terms`` (n, K) and ``shaped`` (n,), both float64, hold the last step and are overwritten by the next; buffers copy
    them. ``acted_on`` is what the policy saw before that step. The returned reward is a fresh array, since
    Stable-Baselines3 adds the time-limit bootstrap to it in place, and of the environments' own type: float32, or float64
    from a SubprocVecEnv.
    """

    def __init__(self, venv: VecEnv, contributions: Contributions, processes: Processes = ALONE) -> None:
        super().__init__(venv)
        self._processes = processes
        n, contributed = venv.num_envs, list(contributions.reward_terms)
        self.contributions = contributions
        self.owners = contributed
        self.columns = (
            TermColumn(NATIVE, 1.0),
            *(TermColumn(f"{term.plugin}.{term.value.name}", term.value.weight) for term in contributed),
        )
        claimed = contributions.reward_combination
        self.combination: RewardCombination = WeightedSum() if claimed is None else claimed.value
        self.combination.bind(self.columns)
        self._combiner = claimed
        self.terms = np.zeros((n, len(self.columns)))
        self.shaped: Array = np.zeros(n)
        self.obs: Any = None
        self.acted_on: Any = None
        self._actions: Array = np.zeros(0)

        infos = [(column, term.value.info_key) for column, term in enumerate(contributed, 1) if term.value.info_key]
        self._info_columns = [column for column, _ in infos]
        self._info_keys = [key for _, key in infos]
        self._read_infos = operator.itemgetter(*self._info_keys) if infos else None
        self._info_index = _slice(self._info_columns) if len(infos) > 1 else self._info_columns[0] if infos else None
        self._functions = [(column, term.value.fn) for column, term in enumerate(contributed, 1) if term.value.fn]
        self._info_arrays: Callable[[], Mapping[str, Array]] | None = getattr(venv, "info_arrays", None)
        self._batch = StepBatch() if self._info_arrays is None else ArrayBatch()
        self._batch.rewards = self._native = self.terms[:, 0]
        self._no_timeouts, self._shape = np.zeros(n, dtype=bool), (n,)
        self._flat = self.terms.reshape(-1)
        self._zeros = np.zeros(self._flat.size)

        self._sums, self._steps = np.zeros_like(self.terms), 0
        self._returns = np.zeros(n)
        self._episodes: deque[float] = deque(maxlen=EPISODES)
        self._ended: list[tuple[int, int, float]] = []
        self._first = processes.part(n * processes.count).start

    def reset(self) -> Any:
        self.obs = self.venv.reset()
        self._returns[:] = 0.0
        return self.obs

    def step_async(self, actions: Array) -> None:
        self._actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> tuple[Any, Array, Array, list[dict[str, Any]]]:
        next_obs, rewards, dones, infos = self.venv.step_wait()
        terms, obs = self.terms, self.obs
        ended = True in dones.tolist()  # a fifth of the time of dones.any()
        self._native[:] = rewards
        if self._read_infos is not None:
            self._fill_from_infos(infos)
        if self._functions:
            self._fill_from_functions(obs, next_obs, dones, infos, ended)
        if self._flat.dot(self._zeros) != 0.0:  # 0 x NaN and 0 x inf are NaN, which differs from everything
            raise self._not_finite()
        combined = self.combination(terms, obs if self.combination.needs_obs else None)
        if self._combiner is not None:
            combined = self._checked(combined, self._combiner)
        self.shaped = combined
        self.acted_on, self.obs = obs, next_obs

        self._sums += terms
        self._steps += 1
        self._returns += combined
        if ended:
            self._remember(dones)
            self._returns[dones] = 0.0
        return next_obs, combined.astype(rewards.dtype), dones, infos

    # ---- filling the matrix ----------------------------------------------------------------------------------------

    def _fill_from_infos(self, infos: Sequence[Mapping[str, Any]]) -> None:
        try:
            if self._info_arrays is not None:
                arrays = self._info_arrays()
                for column, key in zip(self._info_columns, self._info_keys, strict=True):
                    self.terms[:, column] = arrays[key]
            else:
                self.terms[:, self._info_index] = list(map(self._read_infos, infos))  # type: ignore[arg-type]
        except ContributionError as error:  # arrays that say themselves what they lack
            raise self._failed(column, error) from error
        except (KeyError, TypeError, ValueError) as error:
            raise self._unreadable(infos) from error

    def _fill_from_functions(
        self, obs: Any, next_obs: Any, dones: Array, infos: Sequence[Mapping[str, Any]], ended: bool
    ) -> None:
        batch = self._batch
        batch.obs, batch.actions, batch.dones, batch.infos = obs, self._actions, dones, infos
        batch.next_obs = with_terminal_observations(next_obs, dones, infos) if ended else next_obs
        batch.timeouts = timeouts(infos) if ended else self._no_timeouts
        if isinstance(batch, ArrayBatch) and self._info_arrays is not None:
            batch.arrays = self._info_arrays()
        for column, function in self._functions:
            try:
                values = np.asarray(function(batch))
            except Exception as error:
                raise self._failed(column, error) from error
            if values.shape != self._shape:
                raise self._blame(
                    column, f"returned shape {values.shape}, and {self.num_envs} environments need ({self.num_envs},)"
                )
            self.terms[:, column] = values

    def _checked(self, combined: Array, claimed: Contributed[RewardCombination]) -> Array:
        """What a plugin's combination returned, if it is finite numbers for every environment."""
        combined = np.asarray(combined)
        if combined.shape == self._shape and combined.dot(self._zeros[: self.num_envs]) == 0.0:
            return combined
        what = "a value that is not finite" if combined.shape == self._shape else f"shape {combined.shape}"
        raise ContributionError(
            f"the reward combination returned {what} for {self.num_envs} environments",
            where=f"plugins.{claimed.plugin}",
            who=claimed.who,
            do=f"It must return ({self.num_envs},) finite numbers for ({self.num_envs}, {len(self.columns)}) terms",
        )

    # ---- errors ----------------------------------------------------------------------------------------------------

    def _blame(self, column: int, what: str, do: str = "") -> ContributionError:
        owner = self.owners[column - 1]
        return ContributionError(
            f"reward term {self.columns[column].name} {what}", where=f"plugins.{owner.plugin}", who=owner.who, do=do
        )

    def _failed(self, column: int, error: Exception) -> ContributionError:
        if isinstance(error, ContributionError):
            return self._blame(column, f"cannot be computed: {error.what}", error.do)
        return self._blame(column, f"raised {type(error).__name__}: {error}", "Run again with --debug to see where")

    def _not_finite(self) -> ContributionError:
        row, column = (int(i) for i in np.argwhere(~np.isfinite(self.terms))[0])
        value = self.terms[row, column]
        if column == 0:
            return ContributionError(f"environment {row} gave the reward {value}", where="env.id")
        return self._blame(column, f"is {value} in environment {row}", "A term must be a finite number at every step")

    def _unreadable(self, infos: Sequence[Mapping[str, Any]]) -> ContributionError:
        """Which term, which environment, which key: looked up only once something went wrong."""
        arrays = self._info_arrays() if self._info_arrays is not None else None
        for column, key in zip(self._info_columns, self._info_keys, strict=True):
            rows: Sequence[Mapping[str, Any]] = infos if arrays is None else [arrays]
            for row, info in enumerate(rows):
                if key not in info:
                    hidden = ("TimeLimit.truncated", "terminal_observation", "episode")
                    known = ", ".join(sorted(name for name in info if name not in hidden)) or "none"
                    return self._blame(
                        column,
                        f"reads the info key {key!r}, which environment {row} does not give",
                        f"It gives {known}",
                    )
                if arrays is None and not np.isscalar(info[key]) and np.shape(info[key]) != ():
                    return self._blame(
                        column, f"reads the info key {key!r}, which is no number in environment {row}: {info[key]!r}"
                    )
        return self._blame(self._info_columns[0], "cannot be read from the infos")

    # ---- what is logged and saved ----------------------------------------------------------------------------------

    def _remember(self, dones: Array) -> None:
        """Shaped returns of episodes that ended now; those of all processes come together when they are asked for."""
        if not self._processes.several:
            self._episodes.extend(self._returns[dones].tolist())
            return
        for row in np.flatnonzero(dones):
            self._ended.append((self._steps, self._first + int(row), float(self._returns[row])))

    def exchange(self) -> None:
        """The episodes of all processes, in the order in which one would have seen them."""
        ended = sorted(item for part in self._processes.gather(self._ended) for item in part)
        self._episodes.extend(shaped for _, _, shaped in ended)
        self._ended = []

    def summary(self) -> dict[str, float]:
        """Means since the last call: every term per step, and the shaped return of the last episodes."""
        metrics: dict[str, float] = {}
        if self._steps:
            sums = np.sum(self._processes.gather(self._sums.sum(axis=0)), axis=0)
            means = sums / (self._steps * self.num_envs * self._processes.count)
            metrics = {f"terms/{column.name}": float(value) for column, value in zip(self.columns, means, strict=True)}
            self._sums[:], self._steps = 0.0, 0
        if self._episodes:
            metrics["rollout/shaped_return"] = float(np.mean(self._episodes))
        return metrics

    def state_dict(self) -> StateTree:
        return {
            "obs": self.obs,
            "sums": self._sums.copy(),
            "steps": self._steps,
            "returns": self._returns.copy(),
            "episodes": list(self._episodes),
        }

    def load_state_dict(self, state: StateTree) -> None:
        self.obs = state["obs"]
        self._sums[:], self._steps = state["sums"], state["steps"]
        self._returns[:] = state["returns"]
        self._episodes = deque(state["episodes"], maxlen=EPISODES)


def _slice(columns: Sequence[int]) -> slice | list[int]:
    """A slice where the columns are neighbours: assigning to one costs a third of assigning to a list."""
    neighbours = list(range(columns[0], columns[0] + len(columns)))
    return slice(columns[0], columns[0] + len(columns)) if list(columns) == neighbours else list(columns)


def env_steps(venv: VecEnv) -> int | None:
    """Steps of the environments so far, where a wrapper of a plugin takes several a step and counts them; else None."""
    return sum(venv.get_attr(COUNT)) if venv.has_attr(COUNT) else None


def find(venv: VecEnv | None) -> TermVecEnv | None:
    """The TermVecEnv among the wrappers of ``venv``, if there is one."""
    while isinstance(venv, VecEnvWrapper):
        if isinstance(venv, TermVecEnv):
            return venv
        venv = venv.venv
    return None

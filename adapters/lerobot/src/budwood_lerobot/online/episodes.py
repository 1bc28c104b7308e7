"""Environments side by side, stepped a whole decision at a time. Shapes: n environments, C steps of a decision, D numbers.

Every episode begins with a seed of its own, given from outside, and only where :meth:`Episodes.begin` says so. What an
environment does by itself between the end of its episode and that moment (gymnasium's vectors reset in the same step, or in
the next) is not looked at, so no reward and no observation leaks from one episode into another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import concatenate, create_empty_array, iterate

from budwood.api import Array, ConfigError, StateTree, StepBatch

Observer = Callable[[StepBatch], None]
Episode = tuple[float, int, float]
"""Return, length, and success: 1 or 0, NaN where the environment does not tell."""
RECENT = 100
"""Over how many episodes return, length and success are averaged."""


@dataclass(frozen=True)
class Decision:
    """What a decision led to, (n,) each, for the environments that took part; 0 and False for the others.

    ``successes`` 1 or 0 where an episode ended and the environment tells, elsewhere NaN. ``finished`` are the episodes that
    ended, in that order, with the step of the decision and the environment.

    ``rewards`` float64, summed over the ``steps`` that were executed before the episode ended, if it did; ``obs`` as the
    vector gives them, with the last observation of an episode where it ended.
    """

    rewards: Array
    steps: Array
    terminated: Array
    truncated: Array
    successes: Array
    obs: Any
    finished: list[tuple[int, int, Episode]]

    @property
    def ended(self) -> Array:
        both: Array = self.terminated | self.truncated
        return both


class Episodes:
    """``vector`` is one of gymnasium's, or a lazy one of LeRobot; ``thaw`` are reset options that it needs beside.

    ``obs`` is what the vector gave last.
    """

    def __init__(self, vector: Any, thaw: Mapping[str, Any] | None = None) -> None:
        if vector.metadata.get("autoreset_mode") == AutoresetMode.DISABLED:
            raise ConfigError(
                "its vector of environments refuses a step after the end of one of the episodes",
                where="env.type",
                do="Create the vector with autoreset in the same step, as LeRobot does",
            )
        n = vector.num_envs
        self.vector, self.n, self._thaw = vector, n, dict(thaw or {})
        self.limit = self._limit()
        self.obs: Any = None
        self.seeds: list[int] = [0] * n
        self.returns, self.lengths = np.zeros(n), np.zeros(n, dtype=np.int64)
        self.executed: list[list[Array]] = [[] for _ in range(n)]
        self.recent: deque[Episode] = deque(maxlen=RECENT)
        self.tells = False

    def begin(self, rows: Array, seeds: Sequence[int]) -> None:
        """New episodes in the environments of the mask ``rows`` (n,); ``seeds`` (n,), read there only."""
        given = [int(seed) if row else None for seed, row in zip(seeds, rows, strict=True)]
        self.obs, _ = self.vector.reset(seed=given, options={**self._thaw, "reset_mask": np.asarray(rows, dtype=bool)})
        for row in np.flatnonzero(rows):
            self.seeds[row], self.executed[row] = int(seeds[row]), []
        self.returns[rows], self.lengths[rows] = 0.0, 0

    def decide(self, actions: Array, taking_part: Array, observer: Observer | None = None) -> Decision:
        """Execute ``actions`` (n, C, D) in the environments of the mask ``taking_part`` (n,), each until its episode ends.

        ``observer`` sees every vector step, of the environments that still run.
        """
        rewards, steps = np.zeros(self.n), np.zeros(self.n, dtype=np.int64)
        terminated, truncated = np.zeros(self.n, dtype=bool), np.zeros(self.n, dtype=bool)
        successes, running, last = np.full(self.n, np.nan), taking_part.copy(), self.obs
        finished: list[tuple[int, int, Episode]] = []
        for c in range(actions.shape[1]):
            before = self.obs
            self.obs, reward, over, cut, infos = self.vector.step(actions[:, c])
            self.tells |= "is_success" in {**infos, **infos.get("final_info", {})}
            self.lengths[running] += 1
            cut = (cut | (self.lengths >= self.limit)) & ~over
            seen = self._seen(infos, over | cut)
            last = _merged(last, seen, running)
            rewards[running] += reward[running]
            steps[running] += 1
            for row in np.flatnonzero(running):
                self.executed[row].append(actions[row, c].copy())
            if observer is not None:
                observer(_batch(running, before, actions[:, c], seen, reward, over, cut, infos))
            ended = running & (over | cut)
            self.returns[running] += reward[running]
            for row in np.flatnonzero(ended):
                successes[row] = info_of(infos, row).get("is_success", np.nan)
                finished.append((c, int(row), (*self._played(row), float(successes[row]))))
            terminated |= ended & over
            truncated |= ended & cut
            running &= ~ended
            if not running.any():
                break
        return Decision(rewards, steps, terminated, truncated, successes, last, finished)

    def unfinished(self, rows: Array) -> list[tuple[float, int]]:
        """Return and length of the episodes of the mask ``rows`` (n,), as far as they have come."""
        return [self._played(row) for row in np.flatnonzero(rows)]

    def _played(self, row: Any) -> tuple[float, int]:
        return float(self.returns[row]), int(self.lengths[row])

    def summary(self) -> dict[str, float]:
        """Means over recent episodes; success only of environments that tell it."""
        if not self.recent:
            return {}
        returns, lengths, successes = map(np.array, zip(*self.recent, strict=True))
        means = {"rollout/return_mean": float(returns.mean()), "rollout/length_mean": float(lengths.mean())}
        if np.isfinite(successes).all():
            means["rollout/success_rate"] = float(successes.mean())
        return means

    def words(self, name: str) -> list[str] | None:
        """What every environment answers to an attribute such as ``task``; None if they have none."""
        if not all(self.vector.call("has_wrapper_attr", name)):
            return None
        return [str(word) for word in self.vector.call(name)]

    def _limit(self) -> float:
        """Steps after which LeRobot calls an episode over, where the environment itself does not."""
        name = "_max_episode_steps"
        limits = self.vector.call(name) if all(self.vector.call("has_wrapper_attr", name)) else [None]
        return float(limits[0]) if limits[0] else np.inf

    def _seen(self, infos: Mapping[str, Any], ended: Array) -> Any:
        """The observations after the step, where an episode ended its last one and not the first of the next."""
        space, finals = self.vector.single_observation_space, infos.get("final_obs")
        if finals is None or not ended.any():
            return self.obs
        rows = list(iterate(self.vector.observation_space, self.obs))
        rows = [finals[i] if finals[i] is not None else row for i, row in enumerate(rows)]
        return concatenate(space, rows, create_empty_array(space, self.n))  # type: ignore[arg-type]

    # ---- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> StateTree:
        """How every unfinished episode came about: its seed, and the actions since, (L, D) each."""
        return {
            "seeds": list(self.seeds),
            "executed": [np.array(actions) for actions in self.executed],
            "returns": self.returns.copy(),
            "lengths": self.lengths.copy(),
            "obs": list(leaves(self.obs)),
        }

    def load_state_dict(self, state: StateTree) -> Array:
        """Bring every episode about again. -> (n,) bool: where it is the same to the bit; elsewhere begin a new one.

        The environments are stepped together, so a short episode begins later, to be there when the longest is.
        """
        executed: list[Array] = state["executed"]
        longest = max(len(actions) for actions in executed)
        waiting = np.array([longest - len(actions) for actions in executed])  # (n,) steps
        pairs = list(zip(executed, waiting.tolist(), strict=True))
        idle: Any = next((actions[0] for actions in executed if len(actions)), None)
        self.begin(np.ones(self.n, dtype=bool), state["seeds"])
        for step in range(longest):
            late = (waiting == step) & (waiting > 0)
            if late.any():
                self.begin(late, state["seeds"])
            self.obs = self.vector.step(np.stack([a[step - w] if step >= w else idle for a, w in pairs]))[0]
        if (waiting == longest).any() and longest:
            self.begin(waiting == longest, state["seeds"])
        self.executed = [list(actions) for actions in executed]
        self.returns, self.lengths = state["returns"].copy(), state["lengths"].copy()
        same = np.ones(self.n, dtype=bool)
        for now, saved in zip(leaves(self.obs), state["obs"], strict=True):
            same &= np.array([np.array_equal(a, b) for a, b in zip(now, saved, strict=True)])
        return same


def episode_seed(*numbers: int) -> int:
    """A seed for an episode from the run's and what tells the episode apart."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def leaves(obs: Any) -> list[Array]:
    """The arrays (n, ...) of observations, depth first."""
    if isinstance(obs, Mapping):
        return [leaf for key in sorted(obs) for leaf in leaves(obs[key])]
    return [np.asarray(obs)]


def _merged(old: Any, new: Any, rows: Array) -> Any:
    """``new`` where ``rows`` is set, elsewhere ``old``; both batched observations."""
    if rows.all():
        return new
    if isinstance(new, Mapping):
        return {key: _merged(old[key], new[key], rows) for key in new}
    if isinstance(new, tuple):
        return tuple(b if row else a for a, b, row in zip(old, new, rows, strict=True))
    merged = np.array(old)
    merged[rows] = new[rows]
    return merged


def _batch(
    running: Array,
    obs: Any,
    actions: Array,
    seen: Any,
    reward: Array,
    over: Array,
    cut: Array,
    infos: Mapping[str, Any],
) -> StepBatch:
    rows = np.flatnonzero(running)
    batch = StepBatch()
    batch.obs, batch.next_obs = rows_of(obs, rows), rows_of(seen, rows)
    batch.actions, batch.rewards = actions[rows], np.asarray(reward, dtype=np.float64)[rows]
    batch.dones, batch.timeouts = (over | cut)[rows], cut[rows]
    batch.infos = [{**info_of(infos, row), "env_index": int(row)} for row in rows]
    return batch


def rows_of(obs: Any, rows: Any) -> Any:
    if isinstance(obs, Mapping):
        return {key: rows_of(part, rows) for key, part in obs.items()}
    return tuple(obs[row] for row in rows) if isinstance(obs, tuple) else obs[rows]


def info_of(infos: Mapping[str, Any], row: int) -> dict[str, Any]:
    """One environment's own info out of the vector's; of the step that ended an episode, not of the reset after it."""
    told = infos
    if "final_info" in infos and infos["_final_info"][row]:
        told = infos["final_info"]
    plain = {}
    for key, values in told.items():
        if (
            key.startswith("_")
            or key in ("final_obs", "final_info")
            or not told.get(f"_{key}", [True] * (row + 1))[row]
        ):
            continue
        plain[key] = info_of(values, row) if isinstance(values, Mapping) else values[row]
    return plain

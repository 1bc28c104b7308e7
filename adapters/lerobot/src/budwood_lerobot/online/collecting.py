"""Collecting a rollout: observe, decide, execute, add up. Shapes: T decisions, n environments, C steps a decision.

With a critic, environments go on from rollout to rollout and begin a new episode wherever one ends. With groups, every
environment plays one episode a rollout, all of a group from the same state, and then waits: nothing is begun by itself.

Of several processes each has n of N environments, numbered through by rank. All draw the random numbers of N, so that an
environment meets the same actions however many processes there are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from budwood.api import ALONE, Array, ConfigError, ContributionError, Processes, StateTree
from budwood_lerobot.online.config import OnlineConfig
from budwood_lerobot.online.episodes import Episodes, episode_seed, leaves
from budwood_lerobot.online.neutral import Neutral
from budwood_lerobot.online.processors import Commands, Processors, detached, tasks
from budwood_lerobot.online.samples import Collected


class Collector:
    """``begun`` (n,) counts each environment's episodes: together with the run's seed it makes their seeds.

    ``groups`` (N,) are those of all environments, of which those of the slice ``rows`` are here; ``env_steps`` too are of all.
    """

    def __init__(
        self,
        episodes: Episodes,
        neutral: Neutral,
        processors: Processors,
        commands: Commands,
        config: OnlineConfig,
        seed: int,
        processes: Processes = ALONE,
    ) -> None:
        self.episodes, self.neutral, self.config, self.seed = episodes, neutral, config, seed
        self._processors, self._commands, self._processes = processors, commands, processes
        n, total, size = episodes.n, episodes.n * processes.count, config.group_size
        if size is not None and n % size:
            each = f" in each of {processes.count} processes" * processes.several
            raise ConfigError(
                f"{n} environments{each} make no whole groups of {size}",
                where="env.n_envs",
                do=f"Use a multiple of {size * processes.count}",
            )
        self.rows = processes.part(total)
        self.groups = None if size is None else np.arange(total) // size
        # Of each environment here, what tells its next episode apart besides how many it has had: itself, or its group.
        self._numbers = np.arange(total)[self.rows] if self.groups is None else self.groups[self.rows]
        self.begun = np.zeros(n, dtype=np.int64)
        self.seconds = {"physics": 0.0, "sampling": 0.0, "update": 0.0}
        self.env_steps = 0
        self._tasks: list[str] = []
        self._starts = np.ones(n, dtype=bool)

    # ---- episodes --------------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """New episodes everywhere, so that none spans two policies."""
        self._begin(np.ones(self.episodes.n, dtype=bool))

    def _begin(self, rows: Array) -> None:
        pairs = zip(self._numbers.tolist(), self.begun.tolist(), strict=True)
        seeds = [episode_seed(self.seed, *pair) for pair in pairs]
        with self.timed("physics"):
            self.episodes.begin(rows, seeds)
            self._tasks = tasks(self.episodes)
        self.begun[rows] += 1
        self._starts[rows] = True

    # ---- a rollout -------------------------------------------------------------------------------------------------

    def collect(self) -> Collected:
        """The next rollout; the environments' clock and the policy's are kept apart in ``seconds`` of CPU time."""
        if self.groups is not None:
            self.restart()
            self._check_groups()
        elif not self.begun.any():
            self.restart()
        collected, n = Collected(), self.episodes.n
        playing = np.ones(n, dtype=bool)
        for _ in range(self.config.rollout):
            ended = self._decide(collected, playing)
            if self.groups is None:
                if ended.any():
                    self._begin(ended)
            else:
                playing &= ~ended
                if not any(self._processes.gather(bool(playing.any()))):
                    break
        self._tell_all(collected, playing)
        with self.timed("sampling"):
            if self.groups is None:
                collected.last_values = self._values(self.episodes.obs)
                collected.last_dones = self._starts.copy()
            else:
                collected.last_values, collected.last_dones = np.zeros(n), np.ones(n, dtype=bool)
        return collected

    def _decide(self, collected: Collected, playing: Array) -> Array:
        """One decision of every environment of the mask ``playing`` (n,). -> (n,) whose episode has ended"""
        with self.timed("sampling"):
            obs = self._processors.observe(self.episodes.obs, self._tasks)
            actions, log_prob, values = self._act(obs)
            steps, outside = self._commands.checked(self._processors.command(self.neutral.chunk(actions)))
        with self.timed("physics"):
            decision = self.episodes.decide(steps, playing)
        if not np.isfinite(decision.rewards).all():
            row = int(np.flatnonzero(~np.isfinite(decision.rewards))[0])
            raise ContributionError(
                f"environment {self.rows.start + row} gives the reward {decision.rewards[row]}",
                where="env.type",
                do="Look at its reward, or at the action that it was sent",
            )
        rewards = decision.rewards.copy()
        cut = decision.truncated
        if self.config.bootstrap and self.neutral.critic and cut.any():
            with self.timed("sampling"):
                rewards[cut] += self.config.gamma * self._values(decision.obs)[cut]
        collected.obs.append(detached(obs))
        collected.actions.append(actions.cpu())
        collected.log_prob.append(log_prob.cpu().numpy())
        collected.values.append(values.cpu().numpy())
        collected.rewards.append(rewards)
        collected.episode_starts.append(self._starts.copy())
        collected.valid.append(playing.copy())
        collected.outside.append(outside)
        self._starts[playing] = False
        now = len(collected.rewards)
        collected.ended += [(now, step, self.rows.start + row, episode) for step, row, episode in decision.finished]
        collected.env_steps += int(decision.steps.sum())
        return decision.ended

    def _act(self, obs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """A decision among those of all environments: in the rows of others stand copies, whose actions nobody takes."""
        if not self._processes.several:
            return self.neutral.act(obs)
        count = self._processes.count
        among = {name: part.repeat(count, *[1] * (part.dim() - 1)) for name, part in obs.items()}
        return tuple(part[self.rows].clone() for part in self.neutral.act(among))

    def _tell_all(self, collected: Collected, playing: Array) -> None:
        """Count the episodes of all environments, in the order in which one process would have seen them end."""
        unfinished = self.episodes.unfinished(playing) if self.groups is not None else []
        parts = self._processes.gather((collected.ended, unfinished, self.episodes.tells, collected.env_steps))
        ended, cut_off, tells, steps = zip(*parts, strict=True)
        self.episodes.recent.extend(episode for *_, episode in sorted(item for part in ended for item in part))
        success = 0.0 if any(tells) else math.nan
        self.episodes.recent.extend((*played, success) for part in cut_off for played in part)
        self.env_steps += sum(steps)

    def _values(self, obs: Any) -> Array:
        values: Tensor = self.neutral.value(self._processors.observe(obs, self._tasks))
        return values.cpu().numpy()

    def _check_groups(self) -> None:
        for leaf in leaves(self.episodes.obs):
            for group in np.unique(self._numbers):
                rows = leaf[self._numbers == group]
                if not all(np.array_equal(rows[0], row) for row in rows[1:]):
                    raise ConfigError(
                        "environments that were reset with the same seed begin from different states, so their episodes "
                        "cannot be compared",
                        where="trainer.advantage",
                        do="Use advantage: gae, or an environment whose reset depends on its seed alone",
                    )

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """CPU seconds of this process; those of environments in processes of their own are not among them."""
        began = time.process_time()
        try:
            yield
        finally:
            self.seconds[what] += time.process_time() - began

    # ---- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> StateTree:
        """On process 0 with the environments of all."""
        playing = self.groups is None and self.episodes.obs is not None
        mine = {
            "begun": self.begun.copy(),
            "starts": self._starts.copy(),
            "episodes": self.episodes.state_dict() if playing else None,
        }
        parts = self._processes.to_first(mine)
        of_all: Any = joined(parts) if parts else mine
        return {**of_all, "env_steps": self.env_steps, "recent": list(self.episodes.recent)}

    def load_state_dict(self, state: StateTree) -> list[str]:
        """-> what cannot continue exactly, one sentence each"""
        mine: Any = own({name: state[name] for name in ("begun", "starts", "episodes")}, self.rows)
        self.begun, self._starts, self.env_steps = mine["begun"].copy(), mine["starts"].copy(), state["env_steps"]
        self.episodes.recent.extend(tuple(episode) for episode in state["recent"])
        if mine["episodes"] is None:
            return []
        same = self.episodes.load_state_dict(mine["episodes"])
        self._tasks = tasks(self.episodes)
        if not same.all():
            self._begin(~same)
        lost = np.flatnonzero(~np.concatenate(self._processes.gather(same)))
        if not len(lost):
            return []
        return [
            "The same seed and actions did not lead the environments back to where they were, so episodes restart in "
            f"environments {', '.join(map(str, lost))}."
        ]


LEAVES = "obs"
"""A list of arrays with a row for each environment, where every other list has an item for each."""


def joined(parts: Sequence[Any]) -> Any:
    """States with a row for each environment, joined along the environments."""
    first = parts[0]
    if isinstance(first, dict):
        return {
            key: [np.concatenate(leaf) for leaf in zip(*(part[key] for part in parts), strict=True)]
            if key == LEAVES
            else joined([part[key] for part in parts])
            for key in first
        }
    if first is None:
        return None
    return np.concatenate(parts) if isinstance(first, np.ndarray) else [item for part in parts for item in part]


def own(whole: Any, rows: slice) -> Any:
    """The inverse of :func:`joined`, for one part."""
    if isinstance(whole, dict):
        return {
            key: [leaf[rows] for leaf in value] if key == LEAVES else own(value, rows) for key, value in whole.items()
        }
    return None if whole is None else whole[rows]

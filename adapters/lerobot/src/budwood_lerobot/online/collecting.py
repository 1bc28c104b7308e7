"""Collecting a rollout: observe, decide, execute, add up. Shapes: T decisions, n environments, C steps a decision.

With a critic, environments go on from rollout to rollout and begin a new episode wherever one ends. With groups, every
environment plays one episode a rollout, all of a group from the same state, and then waits: nothing is begun by itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from budwood.api import Array, ConfigError, ContributionError, StateTree
from budwood_lerobot.online.config import OnlineConfig
from budwood_lerobot.online.episodes import Episodes, episode_seed, leaves
from budwood_lerobot.online.neutral import Neutral
from budwood_lerobot.online.processors import Commands, Processors, detached, tasks
from budwood_lerobot.online.samples import Collected


class Collector:
    """``begun`` (n,) counts each environment's episodes: together with the run's seed it makes their seeds."""

    def __init__(
        self,
        episodes: Episodes,
        neutral: Neutral,
        processors: Processors,
        commands: Commands,
        config: OnlineConfig,
        seed: int,
    ) -> None:
        self.episodes, self.neutral, self.config, self.seed = episodes, neutral, config, seed
        self._processors, self._commands = processors, commands
        n, size = episodes.n, config.group_size
        if size is not None and n % size:
            raise ConfigError(
                f"{n} environments make no whole groups of {size}", where="env.n_envs", do=f"Use a multiple of {size}"
            )
        self.groups = None if size is None else np.arange(n) // size
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
        seeds = [episode_seed(self.seed, *numbers) for numbers in self._numbers()]
        with self.timed("physics"):
            self.episodes.begin(rows, seeds)
            self._tasks = tasks(self.episodes)
        self.begun[rows] += 1
        self._starts[rows] = True

    def _numbers(self) -> Iterator[tuple[int, int]]:
        """What tells the next episode of every environment apart: (environment or group, how many it has had)."""
        who = np.arange(self.episodes.n) if self.groups is None else self.groups
        return zip(who.tolist(), self.begun.tolist(), strict=True)

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
                if not playing.any():
                    break
        if self.groups is not None:
            self.episodes.unfinished(playing)
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
            actions, log_prob, values = self.neutral.act(obs)
            steps, outside = self._commands.checked(self._processors.command(self.neutral.chunk(actions)))
        with self.timed("physics"):
            decision = self.episodes.decide(steps, playing)
        if not np.isfinite(decision.rewards).all():
            row = int(np.flatnonzero(~np.isfinite(decision.rewards))[0])
            raise ContributionError(
                f"environment {row} gives the reward {decision.rewards[row]}",
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
        self.env_steps += int(decision.steps.sum())
        return decision.ended

    def _values(self, obs: Any) -> Array:
        values: Tensor = self.neutral.value(self._processors.observe(obs, self._tasks))
        return values.cpu().numpy()

    def _check_groups(self) -> None:
        assert self.groups is not None
        for leaf in leaves(self.episodes.obs):
            for group in np.unique(self.groups):
                rows = leaf[self.groups == group]
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
        playing = self.groups is None and self.episodes.obs is not None
        return {
            "begun": self.begun.copy(),
            "starts": self._starts.copy(),
            "env_steps": self.env_steps,
            "episodes": self.episodes.state_dict() if playing else None,
            "recent": list(self.episodes.recent),
        }

    def load_state_dict(self, state: StateTree) -> list[str]:
        """-> what cannot continue exactly, one sentence each"""
        self.begun, self._starts, self.env_steps = state["begun"].copy(), state["starts"].copy(), state["env_steps"]
        self.episodes.recent.extend(tuple(episode) for episode in state["recent"])
        if state["episodes"] is None:
            return []
        same = self.episodes.load_state_dict(state["episodes"])
        self._tasks = tasks(self.episodes)
        if same.all():
            return []
        self._begin(~same)
        which = ", ".join(str(row) for row in np.flatnonzero(~same))
        return [
            "The same seed and actions did not lead the environments back to where they were, so episodes restart in "
            f"environments {which}."
        ]

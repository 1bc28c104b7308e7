"""Learning from episodes: collect, advantages, update, and again; as core drives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from budwood.api import (
    AdvantageFn,
    Array,
    CheckpointError,
    Contributed,
    ContributionError,
    Contributions,
    Evaluation,
    Policy,
    Rollout,
    Run,
    StateTree,
    StepBatch,
    TrainerEvents,
    blamed,
    copied,
)
from budwood.api.generators import generators, set_aside, set_generators
from budwood.api.sharing import alike, check_alike
from budwood_lerobot.online import evaluation
from budwood_lerobot.online.advantages import gae, group_relative, identical
from budwood_lerobot.online.collecting import Collector
from budwood_lerobot.online.config import OnlineConfig
from budwood_lerobot.online.episodes import Episodes
from budwood_lerobot.online.neutral import LogProb, Neutral
from budwood_lerobot.online.pieces import Among, own_generators
from budwood_lerobot.online.processors import Commands, Processors, stacked, tasks
from budwood_lerobot.online.samples import Collected
from budwood_lerobot.online.shown import Show
from budwood_lerobot.online.update import Update

_SAME = "Resume with the configuration the run was started with."


class OnlineTrainer:
    """Implements :class:`budwood.api.Trainer`.

    ``make_policy()`` makes the policy anew from torch's generator; ``make_episodes(n)`` makes ``n`` environments like those of
    ``training``, and ``make_shown(show)`` one whose pictures are seen;
    ``export_native(folder)`` writes a policy of LeRobot, None where a plugin made the policy from nothing. ``native`` is
    that policy of LeRobot, or the plugin's.
    """

    def __init__(
        self,
        run: Run,
        contributions: Contributions,
        *,
        native: Any,
        neutral: Neutral,
        make_policy: Callable[[], Policy],
        training: Episodes,
        make_episodes: Callable[[int], Episodes],
        make_shown: Callable[[Show], Episodes],
        processors: Processors,
        export_native: Callable[[Path], Path] | None,
    ) -> None:
        config: OnlineConfig = run.trainer
        self.native, self.neutral, self.config = native, neutral, config
        self.total_steps, self.steps = config.total_steps, 0
        self._make_policy, self._export_native = make_policy, export_native
        self._make_episodes, self._make_shown = make_episodes, make_shown
        self._processors, self._advantage = processors, contributions.advantage
        self.processes = run.processes
        self.n_envs = training.n * self.processes.count
        self._commands = Commands(training.vector.single_action_space, config.clip_actions)
        self.collector = Collector(training, neutral, processors, self._commands, config, run.seed, self.processes)
        self.update = Update(neutral, config, contributions, processors.device, self.processes, run.seed)
        self._order = run.rng("lerobot.online.minibatches")
        self._evaluations: dict[int, Episodes] = {}
        self._may_reset = bool(contributions.callbacks or contributions.evaluators)
        self._first: StateTree | None = None
        self._training = False

    # ---- training --------------------------------------------------------------------------------------------------

    unit = "decisions, each of one or more environment steps"

    def env_steps(self) -> int:
        """Those of all processes are counted by process 0."""
        return self.collector.env_steps if self.processes.first else 0

    def fit(self, events: TrainerEvents) -> None:
        goes_on = events.start()
        self._training = True
        while goes_on and self.steps < self.total_steps:
            seconds = self.collector.seconds
            seconds.update(dict.fromkeys(seconds, 0.0))
            collected = self.collector.collect()
            shown = events.wants_rollouts()
            of_all = collected.of_all(self.processes, shown)
            advantages = self.advantages(of_all)
            if shown:
                events.rollout_end(self._rollout(of_all, advantages))
            keep = self._kept(of_all)
            if self.processes.several:
                check_alike(self.processes.gather(alike(self.neutral.policy, self._processors.device)))
            with self.collector.timed("update"):
                metrics = self._learn(collected, of_all, advantages, keep) if keep.any() else {}
            valid = np.stack(of_all.valid)
            self.steps += int(valid.sum())
            spent = self.processes.sum(torch.tensor(list(seconds.values()), dtype=torch.float64)).tolist()
            metrics |= {f"time/{what}_cpu": cpu for what, cpu in zip(seconds, spent, strict=True)}
            metrics |= self.collector.episodes.summary()
            metrics["rollout/env_steps"] = float(self.collector.env_steps)
            metrics["rollout/outside_bounds"] = float(np.mean(of_all.outside))
            if self.collector.groups is not None:
                metrics["rollout/identical_share"] = 1 - float((keep & valid).sum() / valid.sum())
            events.log(metrics, self.steps)
            goes_on = events.boundary(self.steps)

    def _learn(self, collected: Collected, of_all: Collected, advantages: Array, keep: Array) -> dict[str, float]:
        """The update on what this process ``collected``, among the decisions ``of_all``: (T, N) ``advantages`` and ``keep``."""
        rows = self.collector.rows
        among = Among.of(of_all, advantages, keep, rows)
        mine = keep[:, rows].copy()
        if not mine.any():
            mine[0, 0] = True  # counts for nothing
        return self.update.run(collected.samples(advantages[:, rows], mine), self._order, among)

    def advantages(self, collected: Collected) -> Array:
        """(T, n) float32: a plugin's, or those that the configuration names."""
        config = self.config
        inputs = collected.advantage_inputs(config.gamma, config.gae_lambda, self.collector.groups)
        if self._advantage is None:
            return (gae if config.critic else group_relative)(inputs)
        return _claimed(self._advantage, inputs)

    def _kept(self, collected: Collected) -> Array:
        """(T, n): the decisions to learn from. A group whose returns are all equal teaches nothing."""
        keep, groups = np.stack(collected.valid), self.collector.groups
        if groups is None or self._advantage is not None:
            return keep
        returns = np.stack(collected.rewards).sum(axis=0)
        for group in np.unique(groups):
            if identical(returns[groups == group]):
                keep[:, groups == group] = False
        return keep

    def _rollout(self, collected: Collected, advantages: Array) -> Rollout:
        claimed = self._advantage
        inputs = collected.advantage_inputs(self.config.gamma, self.config.gae_lambda, self.collector.groups)
        return Rollout(
            obs={key: value.numpy() for key, value in stacked(collected.obs).items()},
            actions=torch.stack(collected.actions).numpy(),
            terms=None,
            columns=(),
            rewards=inputs.rewards,
            values=inputs.values,
            advantages=advantages,
            episode_starts=inputs.episode_starts,
            last_dones=inputs.last_dones,
            gamma=self.config.gamma,
            gae_lambda=self.config.gae_lambda,
            log_prob=LogProb(self.neutral.policy),
            after_transforms=lambda: None,
            optimizer=self.update.optimizer,
            advantages_by=None if claimed is None else f"{claimed.plugin} ({claimed.who})",
            extras={"valid": np.stack(collected.valid), "groups": self.collector.groups},
        )

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def evaluate(self, episodes: int, seed: int, observer: Callable[[StepBatch], None] | None = None) -> Evaluation:
        n = min(self.n_envs, episodes)
        with set_aside(seed):
            if n not in self._evaluations:
                self._evaluations[n] = self._make_episodes(n)
            return evaluation.evaluate(
                self._evaluations[n], self.neutral, self._processors, self._commands, episodes, seed, observer
            )

    def play(self, seed: int, show: Show) -> tuple[float, str]:
        """An episode without noise. ``show`` gets what the environment renders, (height, width, 3) uint8, of its first state
        and after each step. -> frames a second, as the environment means them, and the words of its task, "" if it has none.

        :raises ConfigError: the environment renders nothing.
        """
        with set_aside(seed):
            episodes = self._make_shown(show)
            try:
                evaluation.evaluate(episodes, self.neutral, self._processors, self._commands, 1, seed)
                (words,) = tasks(episodes)
            finally:
                episodes.vector.close()
        return float(episodes.vector.metadata.get("render_fps", 30)), words

    # ---- state -----------------------------------------------------------------------------------------------------

    def reset_policy(self, seed: int) -> None:
        """Parameters of ``init_from``, or as the policy is made under ``seed``, of a policy of LeRobot as it was loaded."""
        if self._first is not None:
            self.load_policy(self._first)
        else:
            with set_aside(seed):
                fresh: Any = self._make_policy()
            self.neutral.policy.load_state_dict(fresh.state_dict())
        self.update.optimizer.state.clear()
        self.update.count = 0
        if self.collector.groups is None:
            self.collector.restart()

    def state_dict(self) -> StateTree:
        return {
            **self.policy_state(),
            "optimizer": copied(self.update.optimizer.state_dict()),
            "steps": self.steps,
            "updates": self.update.count,
            "order": dict(self._order.bit_generator.state),
            "generators": generators(),
            "collector": self.collector.state_dict(),
            "first": self._first,
        }

    def load_state_dict(self, saved: StateTree) -> Sequence[str]:
        _load(self.neutral.policy, saved["policy"], "resume", _SAME)
        self.update.optimizer.load_state_dict(copied(saved["optimizer"]))
        self.steps, self.update.count, self._first = saved["steps"], saved["updates"], saved["first"]
        self._order.bit_generator.state = saved["order"]
        notes = self.collector.load_state_dict(saved["collector"])
        set_generators(own_generators(saved["generators"], self.processes))
        if self._processors.device != "cpu":
            notes.append(f"On {self._processors.device} the sums of an update may round differently: not bit for bit.")
        return notes

    def policy_state(self) -> StateTree:
        return {"policy": copied(self.neutral.policy.state_dict())}

    def load_policy(self, saved: StateTree) -> None:
        _load(
            self.neutral.policy, saved["policy"], "init_from", "Start from a run with the same policy and environment."
        )
        if not self._training and self._may_reset:
            self._first = {"policy": copied(saved["policy"])}

    def export(self, folder: Path) -> Path:
        """A policy of LeRobot as ``pretrained_model``, which its own tools load; any other as ``policy.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        if self._export_native is not None:
            return self._export_native(folder)
        from safetensors.torch import save_model

        path = folder / "policy.safetensors"
        save_model(self.neutral.policy, str(path))
        return path

    def close(self) -> None:
        for episodes in (self.collector.episodes, *self._evaluations.values()):
            episodes.vector.close()
        self._evaluations.clear()


def _claimed(claimed: Contributed[AdvantageFn], inputs: Any) -> Array:
    with blamed(claimed, "advantage"):
        advantages = np.asarray(claimed.value(inputs), dtype=np.float32)
        if advantages.shape != inputs.rewards.shape or not np.isfinite(advantages).all():
            raise ContributionError(
                f"its advantage is an array {advantages.shape} with {int((~np.isfinite(advantages)).sum())} numbers that "
                f"are not finite, and {inputs.rewards.shape} finite ones are needed",
                where=f"plugins.{claimed.plugin}",
            )
    return advantages


def _load(policy: torch.nn.Module, parameters: StateTree, where: str, do: str) -> None:
    try:
        policy.load_state_dict(parameters)
    except RuntimeError as error:
        raise CheckpointError(
            f"the policy of the checkpoint is another one: {' '.join(str(error).split())}", where=where, do=do
        ) from error

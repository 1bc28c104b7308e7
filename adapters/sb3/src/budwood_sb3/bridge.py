"""Between Stable-Baselines3's loop and budwood's events: boundaries, rollouts and metrics.

Nothing here runs once per environment step: ``_on_step`` is a callable written in C, and everything else happens at the
start and the end of a rollout. The start of a rollout comes right after the update that precedes it, which makes it the
boundary at which a run can be saved, evaluated or stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from budwood.api import BindingError, Rollout, TrainerEvents
from budwood_sb3 import vec
from budwood_sb3.buffers import TermRollout
from budwood_sb3.together import Together, environments

Metrics = Mapping[str, float]


class StopTraining(Exception):  # noqa: N818
    """Leaves ``learn`` at a boundary; caught around it."""


class Bridge(BaseCallback):
    """Reports boundaries. ``begin()`` is called once before the first rollout, when ``learn`` has set everything up.

    ``rollout_started``: the trainer stands between the start of a rollout and its first step, not after its last update.
    """

    _on_step = True.__bool__  # called every step: no Python frame

    def __init__(self, events: TrainerEvents, begin: Callable[[], None]) -> None:
        super().__init__()
        self.events = events
        self.rollout_started = False
        self._begin: Callable[[], None] | None = begin

    def _on_rollout_start(self) -> None:
        self.rollout_started = True
        if self._begin is not None:
            if not self._open(self._begin):
                raise StopTraining
        elif self.model.num_timesteps >= self.events.next_boundary and not self.events.boundary(
            self.model.num_timesteps
        ):
            raise StopTraining

    def _open(self, begin: Callable[[], None]) -> bool:
        self._begin = None
        begin()
        return self.events.start()

    def _on_training_end(self) -> None:
        self.rollout_started = False
        if self._begin is not None:  # there was nothing left to train
            self._open(self._begin)
        self.events.boundary(self.model.num_timesteps)


class RolloutBridge(Bridge):
    """For on-policy trainers: also shows finished rollouts, and dumps the log every ``log_interval`` of them.

    Stable-Baselines3 counts iterations in a local variable of ``learn``, which a resumed run cannot restore; here they
    are counted in steps. ``log_interval`` None leaves the log to ``learn``.
    """

    model: OnPolicyAlgorithm

    def __init__(self, events: TrainerEvents, begin: Callable[[], None], log_interval: int | None) -> None:
        super().__init__(events, begin)
        self._log_interval = log_interval

    def _on_rollout_end(self) -> None:
        if isinstance(self.model, Together):
            self.model.exchange_episodes()
        if self.events.wants_rollouts():
            rollout = rollout_of(self.model)
            self.events.rollout_end(self.model.whole(rollout) if isinstance(self.model, Together) else rollout)
        if self._log_interval is not None:
            iteration = self.model.num_timesteps // (self.model.n_steps * environments(self.model))
            if iteration % self._log_interval == 0:
                self.model.dump_logs(iteration)


class EventWriter(KVWriter):
    """Sends every dump of Stable-Baselines3's logger on, under its own names, with the reward terms' means beside them."""

    def __init__(self, log: Callable[[Metrics, int], None], terms: vec.TermVecEnv | None) -> None:
        self._log, self._terms = log, terms

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        metrics = {key: float(value) for key, value in key_values.items() if _is_number(value)}
        if self._terms is not None:
            metrics |= self._terms.summary()
        self._log(metrics, step)

    def close(self) -> None: ...


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.number)) or (isinstance(value, torch.Tensor) and value.numel() == 1)


class LogProb(torch.nn.Module):
    """log pi(a|s) as a module of its own, which is what ``torch.func.functional_call`` can reach.

    forward(obs (N, ...), actions (N, A)) -> (N,).
    """

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy
        self.discrete = isinstance(policy.action_space, spaces.Discrete)

    def forward(self, obs: Any, actions: torch.Tensor) -> torch.Tensor:
        log_prob: torch.Tensor = self.policy.evaluate_actions(obs, self._as_taken(actions))[1]
        return log_prob

    def _as_taken(self, actions: torch.Tensor) -> torch.Tensor:
        return actions.long().flatten() if self.discrete else actions


class NoLogProb(torch.nn.Module):
    """In place of :class:`LogProb` where the probability depends on more than observation and action."""

    def __init__(self, policy: Any, reason: str) -> None:
        super().__init__()
        self.policy, self.reason = policy, reason

    def forward(self, obs: Any, actions: torch.Tensor) -> torch.Tensor:
        raise BindingError(
            f"no log-probability of stored actions: {self.reason}", do="Use PPO, A2C or TRPO without gSDE"
        )


def _log_prob_module(policy: Any, model: OnPolicyAlgorithm) -> torch.nn.Module:
    if hasattr(policy, "lstm_actor"):
        return NoLogProb(policy, "a recurrent policy also needs its hidden states")
    if hasattr(model.rollout_buffer, "action_masks"):
        return NoLogProb(policy, "a maskable policy also needs the action masks")
    if model.use_sde:
        return NoLogProb(policy, "with gSDE it also depends on the exploration noise of the rollout")
    return LogProb(policy)


def rollout_of(model: OnPolicyAlgorithm) -> Rollout:
    """The finished rollout of ``model``, as arrays of its own buffer (T, n, ...)."""
    buffer: Any = model.rollout_buffer
    source = vec.find(model.env)
    log_prob = _log_prob_module(model.policy, model)

    def after_transforms() -> None:
        """An ordinary forward, so that ``policy.action_dist`` holds no tensor of a transform and can be copied again."""
        if isinstance(log_prob, LogProb):
            first = {k: v[0] for k, v in buffer.observations.items()} if source_is_dict else buffer.observations[0]
            obs = model.policy.obs_to_tensor(first)[0]
            with torch.no_grad():
                log_prob(obs, torch.as_tensor(buffer.actions[0], device=model.device))

    source_is_dict = isinstance(buffer.observations, dict)
    return Rollout(
        obs=buffer.observations,
        actions=buffer.actions,
        terms=None if source is None else buffer.terms,
        columns=() if source is None else tuple(column.name for column in source.columns),
        rewards=buffer.rewards,
        values=buffer.values,
        advantages=buffer.advantages,
        episode_starts=buffer.episode_starts,
        last_dones=np.asarray(model._last_episode_starts),
        gamma=model.gamma,
        gae_lambda=model.gae_lambda,
        log_prob=log_prob,
        after_transforms=after_transforms,
        raw_obs=buffer.raw_obs if isinstance(buffer, TermRollout) else None,
        optimizer=model.policy.optimizer,
        advantages_by=buffer.advantages_by if isinstance(buffer, TermRollout) else None,
    )

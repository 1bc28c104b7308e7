"""Buffers that remember reward terms, so that stored experience can be given other weights without stepping again.

Each takes over an ordinary Stable-Baselines3 buffer after the model is constructed: the model's own arguments, and
therefore its saved file, stay those of Stable-Baselines3. ``T`` steps, ``n``
environments, ``K`` reward columns.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, NStepReplayBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from budwood.api import AdvantageFn, AdvantageInputs, Array, BindingError, Contributed, ContributionError
from budwood_sb3.batches import rows_of
from budwood_sb3.vec import TermVecEnv

CHUNK = 65_536
"""How many samples a combination is given at once."""


def _combined(source: TermVecEnv, terms: Array, obs: Any | None) -> Array:
    """Rewards (N,) float32 of terms (N, K) under the combination as it is now."""
    parts = []
    for start in range(0, len(terms), CHUNK):
        rows = slice(start, start + CHUNK)
        part = obs if obs is None else rows_of(obs, rows)
        parts.append(np.asarray(source.combination(terms[rows], part)).astype(np.float32))
    return np.concatenate(parts)


def _flat(obs: Any) -> Any:
    """(A, B, ...) -> (A B, ...)"""
    if isinstance(obs, dict):
        return {key: _flat(value) for key, value in obs.items()}
    return obs.reshape(-1, *obs.shape[2:])


def _storage(shape: tuple[int, int], space: spaces.Space[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _storage(shape, part) for key, part in space.items()}
    return np.zeros((*shape, *(space.shape or ())), dtype=space.dtype)


def _store(storage: Any, row: int, obs: Any) -> None:
    if isinstance(storage, dict):
        for key, part in storage.items():
            part[row] = obs[key]
    else:
        storage[row] = obs


def _as_native(buffer: Any, mixin: type) -> tuple[Any, ...]:
    """Pickle as the Stable-Baselines3 class it was, without environments or a plugin's callables."""
    native = next(base for base in type(buffer).__mro__ if not issubclass(base, mixin) and issubclass(base, BaseBuffer))
    state = {key: value for key, value in buffer.__dict__.items() if key not in ("_source", "_advantage")}
    return object.__new__, (native,), state


class TermRollout:
    """Mixed into a rollout buffer: ``terms`` (T, n, K), ``shaped`` (T, n), and raw observations if the combination asks.

    What the buffer was given beyond the shaped reward is the time-limit bootstrap; it is kept when the rewards are
    recomputed, so unchanged weights reproduce rewards and advantages exactly.
    """

    _source: TermVecEnv | None
    _advantage: Contributed[AdvantageFn] | None
    # what the buffer class itself owns
    buffer_size: int
    n_envs: int
    pos: int
    generator_ready: bool
    rewards: Array
    values: Array
    episode_starts: Array
    gamma: float
    gae_lambda: float

    def attach(self, source: TermVecEnv | None, advantage: Contributed[AdvantageFn] | None) -> None:
        self._source, self._advantage = source, advantage
        self._last: tuple[torch.Tensor, Array] | None = None
        self._collected_under: int | None = None
        self.raw_obs: Any = None
        if source is not None:
            shape = (self.buffer_size, self.n_envs)
            self.terms = np.zeros((*shape, len(source.columns)))
            self.shaped = np.zeros(shape, dtype=np.float32)
            self.raw_obs = _storage(shape, source.observation_space) if source.combination.needs_obs else None

    def add(self, *args: Any, **kwargs: Any) -> None:
        source = self._source
        if source is not None:
            row = self.pos
            self.terms[row] = source.terms
            self.shaped[row] = source.shaped
            if row == 0:
                self._collected_under = source.combination.version
            if self.raw_obs is not None:
                _store(self.raw_obs, row, source.acted_on)
        super().add(*args, **kwargs)  # type: ignore[misc]

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: Array) -> None:
        self._last = (last_values, dones)
        if self._advantage is None:
            super().compute_returns_and_advantage(last_values, dones)  # type: ignore[misc]
        else:
            self.advantages = self._claimed_advantages(last_values, dones, self._advantage)
            self.returns = self.advantages + self.values

    def _claimed_advantages(self, last_values: torch.Tensor, dones: Array, claimed: Contributed[AdvantageFn]) -> Array:
        inputs = AdvantageInputs(
            rewards=self.rewards,
            values=self.values,
            episode_starts=self.episode_starts,
            last_values=last_values.clone().cpu().numpy().flatten(),
            last_dones=dones,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
        )
        advantages = np.asarray(claimed.value(inputs))
        if advantages.shape != inputs.values.shape or not np.isfinite(advantages).all():
            what = "values that are not finite" if advantages.shape == inputs.values.shape else str(advantages.shape)
            raise ContributionError(
                f"the advantage function returned {what}, and the rollout needs {inputs.values.shape} finite numbers",
                where=f"plugins.{claimed.plugin}",
                who=claimed.who,
            )
        return advantages.astype(np.float32)

    @property
    def advantages_by(self) -> str | None:
        """The plugin whose advantage function is used, None for the trainer's own."""
        claimed = self._advantage
        return None if claimed is None else f"{claimed.plugin} ({claimed.who})"

    @property
    def stale(self) -> bool:
        """Whether the weights have changed since the rewards were computed."""
        return self._source is not None and self._collected_under != self._source.combination.version

    def relabel(self) -> None:
        """Recompute rewards, advantages and returns under the weights as they are now, without stepping."""
        source, last = self._source, self._last
        assert source is not None
        assert last is not None, "relabelling comes after the rollout is complete"
        flat = self.terms.reshape(-1, self.terms.shape[-1])  # (T n, K)
        obs = None if self.raw_obs is None else _flat(self.raw_obs)
        shaped = _combined(source, flat, obs).reshape(self.shaped.shape)  # (T, n)
        bootstrap = self.rewards.astype(np.float64) - self.shaped
        self.rewards = (shaped + bootstrap).astype(np.float32)
        self.shaped = shaped
        self._collected_under = source.combination.version
        self.compute_returns_and_advantage(*last)

    def get(self, batch_size: int | None = None) -> Any:
        if not self.generator_ready and self.stale:
            self.relabel()
        return super().get(batch_size)  # type: ignore[misc]

    def __reduce__(self) -> Any:
        return _as_native(self, TermRollout)


class TermReplay:
    """Mixed into a replay buffer: rows are given the rewards of the weights as they are when sampled.

    A row is recomputed only if it was last written under other weights, so unchanged weights cost one comparison.
    """

    _source: TermVecEnv
    # what the buffer class itself owns
    buffer_size: int
    n_envs: int
    pos: int
    observations: Any
    rewards: Array

    def attach(self, source: TermVecEnv) -> None:
        self._source = source
        shape = (self.buffer_size, self.n_envs, len(source.columns))
        stored = getattr(self, "terms", None)
        if stored is not None and stored.shape == shape:
            return
        refuse_experience(self)  # type: ignore[arg-type]
        self.terms = np.zeros(shape)
        self.versions = np.zeros(self.buffer_size, dtype=np.int64)

    def add(self, *args: Any, **kwargs: Any) -> None:
        row = self.pos
        self.terms[row] = self._source.terms
        self.versions[row] = self._source.combination.version
        super().add(*args, **kwargs)  # type: ignore[misc]

    def _get_samples(self, batch_inds: Array, env: Any = None) -> Any:
        self.refresh(self._rows_read(batch_inds))
        return super()._get_samples(batch_inds, env=env)  # type: ignore[misc]

    def _rows_read(self, batch_inds: Array) -> Array:
        if not isinstance(self, NStepReplayBuffer):
            return batch_inds
        following: Array = batch_inds[:, None] + np.arange(self.n_steps)  # (B, n_steps)
        return following.reshape(-1) % self.buffer_size

    def refresh(self, rows: Array) -> None:
        """Bring the rewards of ``rows`` up to the weights as they are now."""
        version = self._source.combination.version
        old = np.unique(rows[self.versions[rows] != version])
        if not old.size:
            return
        terms = self.terms[old]  # (R, n, K)
        needs_obs = self._source.combination.needs_obs
        obs = _flat(rows_of(self.observations, old)) if needs_obs else None
        rewards = _combined(self._source, terms.reshape(-1, terms.shape[-1]), obs)
        self.rewards[old] = rewards.reshape(terms.shape[:2])
        self.versions[old] = version

    def __reduce__(self) -> Any:
        return _as_native(self, TermReplay)


@cache
def _subclass(mixin: type, cls: type) -> type:
    return type(f"Term{cls.__name__}", (mixin, cls), {"__module__": __name__})


def bind_rollout(
    buffer: RolloutBuffer, source: TermVecEnv | None, advantage: Contributed[AdvantageFn] | None
) -> RolloutBuffer:
    """``buffer`` (plain, Dict, recurrent or maskable) with terms and advantage function bound; it owns the same arrays."""
    bound = _mixed(buffer, TermRollout)
    bound.attach(source, advantage)
    return bound  # type: ignore[no-any-return]


def refuse_experience(buffer: ReplayBuffer) -> None:
    """Rewards that are already stored cannot be taken apart into terms."""
    if buffer.size():
        raise BindingError(
            "the replay buffer holds experience without these reward terms",
            where="replay_buffer",
            do="Start with an empty replay buffer, or with one saved under the same terms",
        )


def refuse_hindsight(buffer: ReplayBuffer) -> None:
    if isinstance(buffer, HerReplayBuffer):
        raise BindingError(
            "HerReplayBuffer asks the environment for the rewards of imagined goals, which have no reward terms",
            where="replay_buffer_class",
            do="Use another replay buffer, or no reward terms",
        )


def bind_replay(buffer: ReplayBuffer, source: TermVecEnv) -> ReplayBuffer:
    """``buffer`` (plain, Dict or n-step) with its terms bound; it owns the same arrays."""
    refuse_hindsight(buffer)
    bound = _mixed(buffer, TermReplay)
    bound.attach(source)
    return bound  # type: ignore[no-any-return]


def _mixed(buffer: BaseBuffer, mixin: type) -> Any:
    if isinstance(buffer, mixin):
        return buffer
    bound: Any = object.__new__(_subclass(mixin, type(buffer)))
    bound.__dict__.update(buffer.__dict__)
    return bound

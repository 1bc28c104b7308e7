"""The updates of PPO, A2C and SAC with a place for loss terms and an objective.

Used only when a contribution needs it; each follows the update of Stable-Baselines3 operation by operation, so that an
identity contribution gives the same parameters bit for bit. Tests compare both and watch the original's source.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import explained_variance, polyak_update
from torch import Tensor
from torch.nn import functional

from budwood.api import Contributed, ContributionError, Contributions, LossInputs, LossTerm, Objective
from budwood_sb3.pieces import Piece, Whole


@dataclass(frozen=True)
class Losses:
    """What plugins add to the loss, or put in the place of the policy's."""

    objective: Contributed[Objective] | None
    terms: tuple[Contributed[LossTerm], ...]

    def policy_loss(self, own: Callable[[LossInputs], Tensor], inputs: LossInputs) -> Tensor:
        """The claimed objective, or the trainer's own."""
        return own(inputs) if self.objective is None else _evaluated(self.objective, inputs)

    def add_to(self, loss: Tensor, inputs: LossInputs, seen: Mapping[str, list[float]]) -> Tensor:
        """``loss`` + sum of weight x term; every term's value is appended to ``seen`` under its own name."""
        for term in self.terms:
            value = _evaluated(term, inputs)
            seen[f"train/{term.plugin}.{term.value.name}"].append(value.item())
            loss = loss + term.value.weight * value
        return loss


def _evaluated(contributed: Contributed[Any], inputs: LossInputs) -> Tensor:
    kind = "objective" if isinstance(contributed.value, Objective) else "loss term"
    name = f"{kind} {contributed.plugin}.{contributed.value.name}"
    where = f"plugins.{contributed.plugin}"
    try:
        value = contributed.value.fn(inputs)
    except Exception as error:
        raise ContributionError(
            f"{name} raised {type(error).__name__}: {error}",
            where=where,
            who=contributed.who,
            do="Run again with --debug to see where",
        ) from error
    if not isinstance(value, Tensor) or value.dim() != 0 or not math.isfinite(value.item()):
        shown = f"{type(value).__name__} of shape {tuple(np.shape(value))}" if np.ndim(value) else repr(value)
        raise ContributionError(
            f"{name} returned {shown}, and a loss is one finite number in a tensor", where=where, who=contributed.who
        )
    return value


class _Update:
    """Mixed into an algorithm's class. ``_losses`` is never saved with the model."""

    _losses: Losses
    _pieces: Whole = Whole()

    def _excluded_save_params(self) -> list[str]:
        excluded: list[str] = super()._excluded_save_params()  # type: ignore[misc]
        return [*excluded, "_losses", "_pieces"]


def clipped_surrogate(inputs: LossInputs) -> Tensor:
    """-mean min(A r, A clip(r, 1 - eps, 1 + eps)), r the ratio of new to old probability (Schulman 2017, eq. 7)."""
    ratio = torch.exp(inputs.log_prob - inputs.old_log_prob)
    clipped = torch.clamp(ratio, 1 - inputs.clip_range, 1 + inputs.clip_range)
    surrogate: Tensor = torch.min(inputs.advantages * ratio, inputs.advantages * clipped)
    return -surrogate.mean()


def policy_gradient(inputs: LossInputs) -> Tensor:
    """-mean A log pi"""
    weighted: Tensor = inputs.advantages * inputs.log_prob
    return -weighted.mean()


def soft_actor(inputs: LossInputs) -> Tensor:
    """mean (alpha log pi - min Q)"""
    cost: Tensor = inputs.ent_coef * inputs.log_prob - inputs.q_values
    return cost.mean()


def _on_policy_inputs(model: Any, piece: Piece, **more: Any) -> LossInputs:
    """One minibatch through the policy; B samples."""
    batch = piece.batch
    actions = batch.actions
    if isinstance(model.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    values, log_prob, entropy = model.policy.evaluate_actions(batch.observations, actions)
    return LossInputs(
        obs=batch.observations,
        actions=actions,
        log_prob=log_prob,
        old_log_prob=batch.old_log_prob,
        advantages=piece.advantages,
        returns=batch.returns,
        values=values.flatten(),
        old_values=batch.old_values,
        entropy=entropy,
        policy=model.policy,
        share=piece.share,
        **more,
    )


def _entropy_loss(inputs: LossInputs) -> Tensor:
    """-mean entropy, estimated from the log-probabilities where there is no closed form."""
    return -torch.mean(-inputs.log_prob if inputs.entropy is None else inputs.entropy)


def _step(model: Any, loss: Tensor, piece: Piece) -> None:
    model.policy.optimizer.zero_grad()
    (loss * piece.share).backward()  # type: ignore[no-untyped-call]
    model._pieces.reduce(model.policy.parameters())
    for parameters in _clipped_together(model.policy):
        torch.nn.utils.clip_grad_norm_(parameters, model.max_grad_norm)
    model.policy.optimizer.step()


def _clipped_together(policy: Any) -> list[Any]:
    """All parameters, as Stable-Baselines3 has it; where a policy asks for groups, each by itself: the gradient of a critic
    whose returns are in the thousands would leave nothing of the actor's."""
    groups = policy.optimizer.param_groups
    if any("lr_scale" in group for group in groups):
        return [group["params"] for group in groups]
    return [policy.parameters()]


def _log_rollout_fit(model: Any) -> None:
    """What PPO and A2C log about the critic and the width of a Gaussian policy."""
    model.logger.record("train/explained_variance", explained_variance(*model._pieces.fit(model.rollout_buffer)))
    if hasattr(model.policy, "log_std"):
        model.logger.record("train/std", torch.exp(model.policy.log_std).mean().item())


class PPOUpdate(_Update):
    def train(self: Any) -> None:
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip = self.clip_range(self._current_progress_remaining)
        clip_vf = None if self.clip_range_vf is None else self.clip_range_vf(self._current_progress_remaining)
        seen: dict[str, list[float]] = defaultdict(list)
        far, pieces = False, self._pieces
        pieces.begin(self)
        for _ in range(self.n_epochs):
            seen["train/approx_kl"] = []
            for piece in pieces.of(self, self.batch_size, self.normalize_advantage):
                with pieces.drawing(self):
                    inputs = _on_policy_inputs(self, piece, clip_range=clip)
                    loss = _ppo_loss(self, inputs, clip_vf, seen)
                if self.target_kl is not None:
                    far = pieces.mean(seen["train/approx_kl"][-1], piece) > 1.5 * self.target_kl
                    if far:
                        break
                _step(self, loss, piece)
            self._n_updates += 1
            if far:
                break

        for name, values in pieces.means(seen).items():
            self.logger.record(name, np.mean(values))
        self.logger.record("train/loss", pieces.mean(loss.item(), piece))
        _log_rollout_fit(self)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip)
        if clip_vf is not None:
            self.logger.record("train/clip_range_vf", clip_vf)


def _ppo_loss(model: Any, inputs: LossInputs, clip_vf: float | None, seen: Mapping[str, list[float]]) -> Tensor:
    policy_loss = model._losses.policy_loss(clipped_surrogate, inputs)
    moved = inputs.values - inputs.old_values
    values = inputs.values if clip_vf is None else inputs.old_values + torch.clamp(moved, -clip_vf, clip_vf)
    value_loss = functional.mse_loss(inputs.returns, values)
    entropy_loss = _entropy_loss(inputs)
    seen["train/policy_gradient_loss"].append(policy_loss.item())
    seen["train/value_loss"].append(value_loss.item())
    seen["train/entropy_loss"].append(entropy_loss.item())
    with torch.no_grad():
        log_ratio = inputs.log_prob - inputs.old_log_prob
        ratio = torch.exp(log_ratio)
        seen["train/clip_fraction"].append((torch.abs(ratio - 1) > inputs.clip_range).float().mean().item())
        seen["train/approx_kl"].append(torch.mean((ratio - 1) - log_ratio).cpu().numpy())  # type: ignore[arg-type]
    loss = policy_loss + model.ent_coef * entropy_loss + model.vf_coef * value_loss
    return model._losses.add_to(loss, inputs, seen)  # type: ignore[no-any-return]


class A2CUpdate(_Update):
    def train(self: Any) -> None:
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        seen: dict[str, list[float]] = defaultdict(list)
        pieces = self._pieces
        pieces.begin(self)
        for piece in pieces.of(self, None, self.normalize_advantage):  # one: the whole rollout
            with pieces.drawing(self):
                inputs = _on_policy_inputs(self, piece)
                loss = _a2c_loss(self, inputs, seen)
            _step(self, loss, piece)

        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, values in pieces.means(seen).items():
            self.logger.record(name, values[-1])
        _log_rollout_fit(self)


def _a2c_loss(model: Any, inputs: LossInputs, seen: Mapping[str, list[float]]) -> Tensor:
    policy_loss = model._losses.policy_loss(policy_gradient, inputs)
    value_loss = functional.mse_loss(inputs.returns, inputs.values)
    entropy_loss = _entropy_loss(inputs)
    seen["train/policy_loss"].append(policy_loss.item())
    seen["train/value_loss"].append(value_loss.item())
    seen["train/entropy_loss"].append(entropy_loss.item())
    loss = policy_loss + model.ent_coef * entropy_loss + model.vf_coef * value_loss
    return model._losses.add_to(loss, inputs, seen)  # type: ignore[no-any-return]


class SACUpdate(_Update):
    def train(self: Any, gradient_steps: int, batch_size: int = 64) -> None:
        self.policy.set_training_mode(True)
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers.append(self.ent_coef_optimizer)
        self._update_learning_rate(optimizers)
        seen: dict[str, list[float]] = defaultdict(list)
        for step in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            if self.use_sde:
                self.actor.reset_noise()
            actions, log_prob = self.actor.action_log_prob(batch.observations)
            log_prob = log_prob.reshape(-1, 1)
            ent_coef = _temperature(self, log_prob, seen)
            _critic_step(self, batch, ent_coef, seen)
            _actor_step(self, batch, actions, log_prob, ent_coef, seen)
            if step % self.target_update_interval == 0:
                polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
                polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)

        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, values in seen.items():
            self.logger.record(name, np.mean(values))


def _temperature(model: Any, log_prob: Tensor, seen: Mapping[str, list[float]]) -> Tensor:
    """alpha before its own step, which is taken here if it is learned."""
    if model.ent_coef_optimizer is None:
        fixed: Tensor = model.ent_coef_tensor
        seen["train/ent_coef"].append(fixed.item())
        return fixed
    ent_coef = torch.exp(model.log_ent_coef.detach())
    loss = -(model.log_ent_coef * (log_prob + model.target_entropy).detach()).mean()
    seen["train/ent_coef"].append(ent_coef.item())
    seen["train/ent_coef_loss"].append(loss.item())
    model.ent_coef_optimizer.zero_grad()
    loss.backward()
    model.ent_coef_optimizer.step()
    return ent_coef


def _critic_step(model: Any, batch: Any, ent_coef: Tensor, seen: Mapping[str, list[float]]) -> None:
    discount = model.gamma if batch.discounts is None else batch.discounts
    with torch.no_grad():
        next_actions, next_log_prob = model.actor.action_log_prob(batch.next_observations)
        next_q = torch.cat(model.critic_target(batch.next_observations, next_actions), dim=1)
        next_q, _ = torch.min(next_q, dim=1, keepdim=True)
        next_q = next_q - ent_coef * next_log_prob.reshape(-1, 1)
        target = batch.rewards + (1 - batch.dones) * discount * next_q
    current = model.critic(batch.observations, batch.actions)
    loss: Any = 0.5 * sum(functional.mse_loss(q, target) for q in current)
    seen["train/critic_loss"].append(loss.item())
    model.critic.optimizer.zero_grad()
    loss.backward()
    model.critic.optimizer.step()


def _actor_step(
    model: Any, batch: Any, actions: Tensor, log_prob: Tensor, ent_coef: Tensor, seen: Mapping[str, list[float]]
) -> None:
    q_values, _ = torch.min(torch.cat(model.critic(batch.observations, actions), dim=1), dim=1)
    inputs = LossInputs(
        obs=batch.observations,
        actions=actions,
        log_prob=log_prob.flatten(),
        replay_actions=batch.actions,
        next_obs=batch.next_observations,
        rewards=batch.rewards.flatten(),
        dones=batch.dones.flatten(),
        q_values=q_values,
        ent_coef=ent_coef.reshape(()),
        policy=model.policy,
    )
    loss = model._losses.policy_loss(soft_actor, inputs)
    seen["train/actor_loss"].append(loss.item())
    loss = model._losses.add_to(loss, inputs, seen)
    model.actor.optimizer.zero_grad()
    loss.backward()
    model.actor.optimizer.step()


UPDATES: tuple[tuple[type[BaseAlgorithm], type[_Update]], ...] = ((PPO, PPOUpdate), (A2C, A2CUpdate), (SAC, SACUpdate))


def update_for(cls: type) -> type[_Update] | None:
    """The update that may stand in for the one of ``cls``: only if ``cls`` has not changed ``train`` itself."""
    for base, update in UPDATES:
        if issubclass(cls, base) and cls.train is base.train:  # type: ignore[attr-defined]
            return update
    return None


def losses_of(contributions: Contributions) -> Losses | None:
    if contributions.objective is None and not contributions.loss_terms:
        return None
    return Losses(contributions.objective, tuple(contributions.loss_terms))


@cache
def with_update(cls: type[BaseAlgorithm]) -> type[BaseAlgorithm]:
    """``cls`` with the update that reads ``_losses``, under the same name."""
    update = update_for(cls)
    assert update is not None, f"{cls.__name__} has no update of ours"
    return type(cls.__name__, (update, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})

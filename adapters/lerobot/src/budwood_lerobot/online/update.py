"""The update: clipped surrogate or a plugin's objective, critic, entropy, loss terms; one optimiser."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from budwood.api import ALONE, Contributed, ContributionError, Contributions, LossInputs, Objective, Processes, blamed
from budwood.api.sharing import own_numbers, sum_gradients
from budwood_lerobot.online.config import OnlineConfig
from budwood_lerobot.online.neutral import Neutral
from budwood_lerobot.online.pieces import Among, Piece, metrics_of, normalised, pieces
from budwood_lerobot.online.samples import Samples

Metrics = dict[str, float]


class Update:
    """Moves the policy on the samples of a rollout. ``count`` updates have been made.

    Of several processes each has samples of its own, and all take the update that one process with all samples would take.
    """

    def __init__(
        self,
        neutral: Neutral,
        config: OnlineConfig,
        contributions: Contributions,
        device: str,
        processes: Processes = ALONE,
        seed: int = 0,
    ) -> None:
        self.neutral, self.config, self.device, self.processes, self.seed = neutral, config, device, processes, seed
        self.objective, self.terms = contributions.objective, tuple(contributions.loss_terms)
        self.groups = neutral.param_groups()
        self.optimizer = torch.optim.AdamW(
            [{"params": group["params"], "lr": config.learning_rate * group["lr_scale"]} for group in self.groups],
            lr=config.learning_rate,
            eps=1e-5,
            weight_decay=config.weight_decay,
        )
        self.count = 0

    def run(self, samples: Samples, generator: np.random.Generator, among: Among | None = None) -> Metrics:
        """All epochs over ``samples``, or until the policy is too far from the one that collected them."""
        config, among = self.config, among or Among.alone(samples)
        if config.normalisation == "rollout":
            samples = replace(samples, advantages=normalised(samples.advantages, among.advantages))
        seen: dict[str, list[float]] = defaultdict(list)
        shares: list[float] = []
        norms: list[float] = []
        by_minibatch = config.normalisation == "minibatch"
        far = False
        for _ in range(config.epochs):
            for piece in pieces(samples, among, config.minibatch, by_minibatch, generator, self.device):
                with self._drawing(len(shares)):
                    loss, joint_kl = self._loss(piece, seen)
                shares.append(piece.share)
                far = config.target_kl is not None and self._mean(joint_kl, piece) > 1.5 * config.target_kl
                if far:
                    break
                norms.append(self._step(loss * piece.share))
            if far:
                break
        self.count += 1
        metrics = metrics_of(seen, shares, self.processes)
        metrics["train/minibatches"] = float(len(norms))
        if norms:
            metrics["train/grad_norm"] = float(np.mean(norms))
        if far:
            metrics["train/early_stop"] = 1.0
        if self.neutral.critic:
            metrics["train/explained_variance"] = explained_variance(among.old_values, among.returns)
        return metrics

    def _drawing(self, minibatch: int) -> Any:
        """Around what a policy and plugins compute of rows, which may draw random numbers."""
        if not self.processes.several:
            return nullcontext()
        return own_numbers(self.device, self.seed, self.count, minibatch, self.processes.rank)

    def _mean(self, value: float, piece: Piece) -> float:
        """Of a mean over each piece, the mean over the minibatch."""
        return float(self.processes.sum(torch.tensor(value * piece.share, dtype=torch.float64)))

    def _loss(self, piece: Piece, seen: Mapping[str, list[float]]) -> tuple[Tensor, float]:
        """-> the loss of a piece, and how far the policy has moved on it: KL of whole decisions"""
        config = self.config
        inputs = self._inputs(piece)
        value_loss = functional.mse_loss(inputs.returns, inputs.values) if self.neutral.critic else torch.zeros(())
        with torch.no_grad():
            log_ratio = inputs.log_prob - inputs.old_log_prob
            ratio = log_ratio.exp()
            joint_kl = float((ratio - 1 - log_ratio).mean())  # Schulman's k3 estimator of KL(old || new)
            seen["train/approx_kl"].append(joint_kl)
            seen["train/ratio_worst"].append(float((ratio - 1).abs().max()))
            seen["train/clip_fraction"].append(float(((ratio - 1).abs() > config.clip).float().mean()))
        if self.neutral.critic:
            seen["train/value_loss"].append(value_loss.item())
        if self.count < config.critic_warmup:
            return config.vf_coef * value_loss, joint_kl

        policy_loss = clipped_surrogate(inputs) if self.objective is None else _evaluated(self.objective, inputs)
        entropy = (-inputs.log_prob if inputs.entropy is None else inputs.entropy).mean()
        seen["train/policy_loss"].append(policy_loss.item())
        seen["train/entropy"].append(entropy.item())
        loss = policy_loss - config.ent_coef * entropy + config.vf_coef * value_loss
        for term in self.terms:
            value = _evaluated(term, inputs)
            seen[f"train/{term.plugin}.{term.value.name}"].append(value.item())
            loss = loss + term.value.weight * value
        return loss, joint_kl

    def _inputs(self, piece: Piece) -> LossInputs:
        batch = piece.samples
        log_prob, entropy, values = self.neutral.evaluate(batch.obs, batch.actions)
        critic = (
            {"values": values, "old_values": batch.old_values, "returns": batch.returns} if self.neutral.critic else {}
        )
        return LossInputs(
            obs=batch.obs,
            actions=batch.actions,
            log_prob=log_prob,
            old_log_prob=batch.old_log_prob,
            advantages=batch.advantages,
            entropy=entropy,
            clip_range=self.config.clip,
            policy=self.neutral.policy,
            share=piece.share,
            **critic,
        )

    def _step(self, loss: Tensor) -> float:
        """-> the norm of the gradient before each group of it is clipped by itself, so that a critic's leaves the actor's"""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.processes.several:
            sum_gradients([parameter for group in self.groups for parameter in group["params"]], self.processes)
        limit = math.inf if self.config.max_grad_norm is None else self.config.max_grad_norm
        norm = math.hypot(*(float(torch.nn.utils.clip_grad_norm_(group["params"], limit)) for group in self.groups))
        if not math.isfinite(norm):
            raise ContributionError(
                f"the gradient of the loss is {norm}",
                where="trainer",
                do="Lower learning_rate, or look for what the log names last: a loss term, the objective, the policy",
            )
        self.optimizer.step()
        return norm


def clipped_surrogate(inputs: LossInputs) -> Tensor:
    """-mean min(A r, A clip(r, 1 - eps, 1 + eps)), r the ratio of new to old probability (Schulman 2017, eq. 7)."""
    ratio = torch.exp(inputs.log_prob - inputs.old_log_prob)
    clipped = torch.clamp(ratio, 1 - inputs.clip_range, 1 + inputs.clip_range)
    surrogate: Tensor = torch.min(inputs.advantages * ratio, inputs.advantages * clipped)
    return -surrogate.mean()


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - var(returns - values) / var(returns); NaN where the returns do not vary."""
    spread = returns.var().item()
    return math.nan if spread == 0 else 1 - (returns - values).var().item() / spread


def _evaluated(contributed: Contributed[Any], inputs: LossInputs) -> Tensor:
    kind = "objective" if isinstance(contributed.value, Objective) else "loss term"
    with blamed(contributed, f"{kind} {contributed.value.name}"):
        value = contributed.value.fn(inputs)
        if not isinstance(value, Tensor) or value.dim() != 0 or not math.isfinite(value.item()):
            shown = f"{type(value).__name__} of shape {tuple(np.shape(value))}" if np.ndim(value) else repr(value)
            raise ContributionError(
                f"{kind} {contributed.plugin}.{contributed.value.name} returned {shown}, and a loss is one finite number "
                "in a tensor",
                where=f"plugins.{contributed.plugin}",
            )
    return value

"""The clipped loss of PPO (arXiv 1707.06347) on chains, with what it did measured on the joint scale."""

from __future__ import annotations

import torch
from torch import Tensor

from budwood.api import ContributionError

Metrics = dict[str, Tensor]


def ppo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    divisor: float = 1.0,
    dual: float | None = None,
    clamp: bool = False,
) -> tuple[Tensor, Metrics]:
    """-> the loss to minimise and metrics without gradient, scalars all; inputs are (B,), log-probabilities joint.

    The ratio is exp((log_prob - old_log_prob) / divisor), clipped to [1 - clip_low, 1 + clip_high]. ``dual`` bounds the
    surrogate of a negative advantage A from below by dual A (arXiv 1912.09729). ``clamp`` copies the reference, which clamps
    divided log-probabilities to [-1, 1]: where it acts it takes the gradient away.
    """
    new, old = log_prob / divisor, old_log_prob / divisor
    finite = torch.isfinite(new)
    if not bool(finite.all()):
        raise ContributionError(
            f"the log-probability of {1 - finite.float().mean().item():.0%} of {len(new)} chains is not finite",
            where="flow policy",
            do="Lower the actor's learning rate, clip its gradient, or raise the smallest noise",
        )
    beyond = (new.detach().abs() > 1).float().mean()
    log_ratio = new.clamp(-1, 1) - old.clamp(-1, 1) if clamp else (log_prob - old_log_prob) / divisor
    ratio = log_ratio.exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    bounded = torch.zeros_like(advantages, dtype=torch.bool)
    if dual is not None:
        bounded = (advantages < 0) & (surrogate < dual * advantages)
        surrogate = torch.where(bounded, dual * advantages, surrogate)
    with torch.no_grad():
        joint = log_prob - old_log_prob
        metrics = {
            "joint_kl": (joint.expm1() - joint).mean(),  # the estimator of trainers: E[r - 1 - log r]
            "clip_fraction": ((ratio < 1 - clip_low) | (ratio > 1 + clip_high)).float().mean(),
            "ratio_error": (ratio - 1).abs().mean(),
            "ratio_worst": (ratio - 1).abs().max(),
            "joint_ratio_worst": joint.expm1().abs().max(),
            "dual_fraction": bounded.float().mean(),
            "log_prob_beyond_1": beyond,
        }
    return -surrogate.mean(), metrics

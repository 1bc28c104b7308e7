"""Advantages of a rollout: T decisions by n environments, float32. numpy alone."""

from __future__ import annotations

import numpy as np

from budwood.api import AdvantageInputs, Array

EPSILON = 1e-6
"""Added to a group's spread, as in GRPO for flow policies."""


def gae(inputs: AdvantageInputs) -> Array:
    """Generalised advantage estimation over decisions (Schulman 2016, eq. 16). -> (T, n) float32

    With e = 1 while the episode goes on after a decision, and V(o_last) already in the reward where a time limit ended it:
    ``delta_t = r_t + gamma e_t V_{t+1} - V_t``, ``A_t = delta_t + gamma lambda e_t A_{t+1}``.
    """
    goes_on = 1.0 - np.concatenate([inputs.episode_starts[1:], inputs.last_dones[None]]).astype(np.float32)  # (T, n)
    next_values = np.concatenate([inputs.values[1:], inputs.last_values[None]])  # (T, n)
    discount = np.float32(inputs.gamma) * goes_on
    deltas = inputs.rewards + discount * next_values - inputs.values
    decay = np.float32(inputs.gae_lambda) * discount
    advantages: Array = np.empty_like(deltas)
    ahead = np.zeros_like(deltas[0])
    for t in range(len(deltas) - 1, -1, -1):
        ahead = deltas[t] + decay[t] * ahead
        advantages[t] = ahead
    return advantages


def group_relative(inputs: AdvantageInputs) -> Array:
    """Every decision of an episode has the episode's advantage within its group (GRPO). -> (T, n) float32

    One episode an environment, rewards 0 after its end. With R the undiscounted return: ``A = (R - mean R) / (std R + 1e-6)``
    over the environments that began from the same state, std with n - 1. A group whose returns are all equal says nothing
    of its decisions: 0.
    """
    assert inputs.groups is not None
    returns = inputs.rewards.sum(axis=0, dtype=np.float64)  # (n,)
    relative = np.zeros_like(returns)
    for group in np.unique(inputs.groups):
        rows = inputs.groups == group
        spread = returns[rows].std(ddof=1)
        if not identical(returns[rows]):
            relative[rows] = (returns[rows] - returns[rows].mean()) / (spread + EPSILON)
    return np.broadcast_to(relative.astype(np.float32), inputs.rewards.shape).copy()


def identical(returns: Array) -> bool:
    """Whether the returns (g,) of a group are all the same number."""
    return bool((returns == returns[0]).all())

"""How the task's performance changes with the rewards, through steps of the policy.

A rollout has N = T n samples of ``pi_theta`` and shaped rewards ``r = sum_k w_k s_k R_k``. The virtual policy step is
``theta' = theta + (alpha / N) sum_t Abar_t grad log pi(a_t | s_t)`` with normalised GAE advantages ``Abar``, which are
linear in the rewards up to the normalisation. The derivative of the task's surrogate at ``theta'`` with respect to every
reward then needs one backward pass, one forward-mode product and one scan over time; no matrix of N x N. The policy steps
themselves are in ``policy_steps.py``; what a weight does to the rewards is in ``weights.py``.

Arrays are (T, n) float64 unless said otherwise; ``starts`` is 1 where a sample begins an episode.
"""

from __future__ import annotations

import numpy as np

from budwood.api import Array, Rollout
from budwood_reward_shaping.policy_steps import PolicySteps, advantage_gradient

FLAT = 1e-12
"""Standard deviation below which there is nothing to learn from."""


def reward_adjoint(rollout: Rollout, task_column: int, steps: PolicySteps) -> Array | None:
    """(T, n) derivative of the task's surrogate after ``steps`` of the policy with respect to every reward.

    None where the rollout tells nothing: the task's reward is the same in all its finished episodes, the advantages are all
    equal, or a preconditioner is asked for that a fresh optimiser does not have yet. The gradient would be exactly 0 in the
    first two cases, which does not mean that the weights are good.
    """
    assert rollout.terms is not None
    starts = rollout.episode_starts.astype(np.float64)
    task = task_advantage(rollout.terms[..., task_column], starts, rollout.last_dones)
    advantages = rollout.advantages.astype(np.float64)
    spread = float(advantages.std(ddof=1)) if advantages.size > 1 else 0.0
    if task is None or spread <= FLAT:
        return None
    normalised = (advantages - advantages.mean()) / spread
    try:
        g = advantage_gradient(rollout, normalised, task, steps)
    finally:
        rollout.after_transforms()
    if g is None:
        return None
    return gae_adjoint(normaliser_adjoint(g, normalised, spread), starts, rollout.gamma * rollout.gae_lambda)


def task_advantage(task: Array, starts: Array, last_dones: Array) -> Array | None:
    """Normalised undiscounted task return from every step on; 0 where the episode's end is not in the rollout.

    None if all known returns are equal.
    """
    returns, known = np.zeros_like(task, dtype=np.float64), np.zeros(task.shape, dtype=bool)
    ends = np.concatenate([starts[1:], np.asarray(last_dones, dtype=np.float64)[None]]) > 0  # (T, n)
    later, later_known = np.zeros(task.shape[1]), np.zeros(task.shape[1], dtype=bool)
    for t in reversed(range(len(task))):
        later = task[t] + np.where(ends[t], 0.0, later)
        later_known = ends[t] | later_known
        returns[t], known[t] = later, later_known
    if not known.any() or returns[known].std() <= FLAT:
        return None
    centred = np.where(known, returns - returns[known].mean(), 0.0)
    normalised: Array = centred / returns[known].std()
    return normalised


def normaliser_adjoint(g: Array, normalised: Array, spread: float) -> Array:
    """Through Abar = (A - mean(A)) / std(A), with the N - 1 standard deviation."""
    result: Array = (g - g.mean() - normalised * (g * normalised).sum() / (g.size - 1)) / spread
    return result


def gae_adjoint(g: Array, starts: Array, decay: float) -> Array:
    """c_t = g_t + gamma lambda (1 - start_t) c_{t-1}: what one unit more reward at t adds, through all advantages before."""
    adjoint = np.empty_like(g)
    running = np.zeros(g.shape[1])
    for t in range(len(g)):
        running = g[t] + decay * (1.0 - starts[t]) * running
        adjoint[t] = running
    return adjoint


def discounted_std(terms: Array, starts: Array, gamma: float) -> Array:
    """(K,) standard deviation of every term's discounted return, accumulated along (T, n, K) terms."""
    running = np.zeros(terms.shape[1:])
    returns = np.empty_like(terms, dtype=np.float64)
    for t in range(len(terms)):
        running = terms[t] + gamma * (1.0 - starts[t])[:, None] * running
        returns[t] = running
    spread: Array = returns.std(axis=(0, 1))
    return spread

"""How the task's performance changes with the weights, through one step of the policy, in closed form.

A rollout has N = T n samples of ``pi_theta`` and shaped rewards ``r = sum_k w_k s_k R_k``. The virtual policy step is
``theta' = theta + (alpha / N) sum_t Abar_t grad log pi(a_t | s_t)`` with normalised GAE advantages ``Abar``, which are
linear in the rewards up to the normalisation. The derivative of the task's surrogate at ``theta'`` with respect to the
log-weights ``phi`` then needs one backward pass, one forward-mode product and one scan over time; no matrix of N x N.

Arrays are (T, n) float64 unless said otherwise; ``starts`` is 1 where a sample begins an episode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, jvp

from budwood.api import Array

if TYPE_CHECKING:
    from collections.abc import Iterator

    from budwood.api import Rollout

Parameters = dict[str, torch.Tensor]
FLAT = 1e-12
"""Standard deviation below which there is nothing to learn from."""


def weight_gradient(
    rollout: Rollout, columns: Sequence[int], coefficients: Array, task_column: int, alpha: float
) -> Array | None:
    """dJ/dphi (len(columns),) of the terms in ``columns``, where phi_k moves the reward by ``coefficients[k]`` R_k.

    None where the rollout tells nothing: the task's reward is the same in all its finished episodes, or the advantages are
    all equal. The gradient would be exactly 0 there, which does not mean that the weights are good.
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
        g = advantage_gradient(rollout.log_prob, rollout.obs, rollout.actions, normalised, task, alpha)
    finally:
        rollout.after_transforms()
    adjoint = gae_adjoint(normaliser_adjoint(g, normalised, spread), starts, rollout.gamma * rollout.gae_lambda)
    gradient: Array = coefficients * np.einsum("tn,tnk->k", adjoint, rollout.terms[..., list(columns)])
    return gradient


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


def advantage_gradient(
    log_prob: nn.Module, obs: Any, actions: Array, normalised: Array, task: Array, alpha: float
) -> Array:
    """(T, n) derivative of the task's surrogate at theta' with respect to the normalised advantages at theta.

    ``obs`` (T, n, ...) or a dict of such, ``actions`` (T, n, A), ``task`` (T, n) with 0 for samples that do not count.
    """
    theta: Parameters = {name: p.detach() for name, p in log_prob.named_parameters()}
    like = next(iter(theta.values()))

    def tensor(array: Array) -> torch.Tensor:
        return torch.as_tensor(array, device=like.device)

    states, taken = _flat(obs, tensor), tensor(actions).flatten(0, 1)
    weights, target = (tensor(array).flatten().to(like.dtype) for array in (normalised, task))
    count = len(weights)

    def log_probs(parameters: Parameters) -> torch.Tensor:
        result: torch.Tensor = functional_call(log_prob, parameters, (states, taken))
        return result

    with _evaluation_mode(log_prob):
        step = grad(lambda p: (weights * log_probs(p)).sum() / count)(theta)
        stepped = {name: p + alpha * step[name] for name, p in theta.items()}
        before = log_probs(theta).detach()
        v = grad(lambda p: (torch.exp(log_probs(p) - before) * target).sum() / (target != 0).sum())(stepped)
        j = jvp(log_probs, (theta,), (v,))[1]  # < v, grad log pi(a_t | s_t) > for all t at once
    g: Array = (alpha / count) * j.detach().cpu().numpy().astype(np.float64).reshape(task.shape)
    return g


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


def _flat(obs: Any, tensor: Any) -> Any:
    if isinstance(obs, Mapping):
        return {key: _flat(part, tensor) for key, part in obs.items()}
    return tensor(obs).flatten(0, 1)


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode

"""Virtual steps of the policy, and how the task's surrogate after them depends on the advantages that made them.

``theta`` are the policy's parameters, ``Abar`` the N normalised advantages and ``G(theta) = (1 / N) sum_t rho_t Abar_t`` the
policy's own surrogate, ``rho_t = pi_theta(a_t | s_t) / pi_theta0(a_t | s_t)``. With curvature ``H`` of ``G`` at theta0,
preconditioner ``P`` and a damping zeta of what they make together, M + 1 steps move the policy by
``alpha sum_m (I + alpha (P H - zeta I))^m P grad G``: for P = I the Neumann series of ``-(H - zeta I)^-1 grad G``. M = 0 is
one step and needs no curvature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, jvp

from budwood.api import Array, BindingError

if TYPE_CHECKING:
    from budwood.api import Rollout

Parameters = dict[str, torch.Tensor]


@dataclass(frozen=True)
class PolicySteps:
    """``alpha`` the length of a step; ``order`` M of the Neumann series and ``damping`` zeta of its curvature; ``unroll``
    steps by automatic differentiation instead, if not None; ``adam`` whether Adam's second moment preconditions."""

    alpha: float
    order: int = 0
    damping: float = 0.0
    unroll: int | None = None
    adam: bool = False


class DivergedError(Exception):
    """The virtual steps led to a policy under which the actions taken have no density, or whose slope is not finite."""


def neumann_sum[Vector: (Array, torch.Tensor)](
    hvp: Callable[[Vector], Vector], v: Vector, eta: float, order: int
) -> Vector:
    """eta sum_{m=0}^{order} (I + eta H)^m v, with ``hvp(x) = H x``. Tends to ``-H^-1 v`` where ``0 > H > -2 / eta``."""
    term = v
    total = v
    for _ in range(order):
        term = term + eta * hvp(term)
        total = total + term
    return eta * total


def advantage_gradient(rollout: Rollout, normalised: Array, task: Array, steps: PolicySteps) -> Array | None:
    """(T, n) derivative of the task's surrogate after ``steps`` with respect to the normalised advantages (T, n).

    ``task`` (T, n) is the task's advantage, 0 for samples that do not count. None if ``steps`` need a second moment that a
    fresh optimiser does not have. ``rollout.after_transforms`` is the caller's to call.

    :raises DivergedError: ``alpha`` is too long for this policy.
    """
    problem = _Problem(rollout, normalised, task)
    precondition = second_moment(rollout) if steps.adam else None
    if steps.adam and precondition is None:
        return None
    with _evaluation_mode(rollout.log_prob):
        if precondition is not None:
            _check_moved_by_adam(precondition, problem.ascent())
        if steps.unroll is not None:
            g = _unrolled(problem, steps.alpha, steps.unroll, precondition)
        elif steps.order == 0:
            g = _one_step(problem, steps.alpha, precondition)
        else:
            g = _series(problem, steps, precondition)
    if not np.isfinite(g).all():
        raise DivergedError
    result: Array = g.reshape(task.shape)
    return result


class _Problem:
    """The rollout as tensors, flattened to N samples, and the two surrogates."""

    def __init__(self, rollout: Rollout, normalised: Array, task: Array) -> None:
        self.log_prob: nn.Module = rollout.log_prob
        self.theta: Parameters = {name: p.detach() for name, p in self.log_prob.named_parameters()}
        like = next(iter(self.theta.values()))

        def tensor(array: Array) -> torch.Tensor:
            return torch.as_tensor(array, device=like.device)

        self.inputs = _flat(rollout.obs, tensor), tensor(rollout.actions).flatten(0, 1)
        self.weights, self.task = (tensor(array).flatten().to(like.dtype) for array in (normalised, task))
        self.count, self.counted = len(self.weights), (self.task != 0).sum()

    def log_probs(self, parameters: Parameters) -> torch.Tensor:
        result: torch.Tensor = functional_call(self.log_prob, parameters, self.inputs)
        return result

    def ascent(self) -> Parameters:
        """grad G at theta, where all ratios are 1."""
        step: Parameters = grad(lambda p: (self.weights * self.log_probs(p)).sum() / self.count)(self.theta)
        return step

    def pull(self, stepped: Parameters) -> Parameters:
        """Gradient of the task's surrogate at ``stepped``."""
        before = self.log_probs(self.theta).detach()

        def surrogate(p: Parameters) -> tuple[torch.Tensor, torch.Tensor]:
            ratios = torch.exp(self.log_probs(p) - before)
            return (ratios * self.task).sum() / self.counted, ratios

        try:
            v, ratios = grad(surrogate, has_aux=True)(stepped)
        except ValueError as error:  # torch.distributions refuses parameters that are not finite, or a scale of 0
            raise DivergedError from error
        if not ratios.any():
            raise DivergedError
        pulled: Parameters = v
        return pulled

    def along(self, v: Parameters) -> Array:
        """(N,) < v, grad log pi(a_t | s_t) > for all t at once."""
        j: Array = jvp(self.log_probs, (self.theta,), (v,))[1].detach().cpu().numpy().astype(np.float64)
        return j


def _one_step(problem: _Problem, alpha: float, precondition: Parameters | None) -> Array:
    step = _times(precondition, problem.ascent())
    stepped = {name: p + alpha * step[name] for name, p in problem.theta.items()}
    v = _times(precondition, problem.pull(stepped))
    return (alpha / problem.count) * problem.along(v)


def _series(problem: _Problem, steps: PolicySteps, precondition: Parameters | None) -> Array:
    before = problem.log_probs(problem.theta).detach()

    def surrogate(p: Parameters) -> torch.Tensor:
        return (torch.exp(problem.log_probs(p) - before) * problem.weights).sum() / problem.count

    def curvature(flat: torch.Tensor) -> torch.Tensor:
        """(P H - zeta I) x"""
        bent = jvp(grad(surrogate), (problem.theta,), (_unflattened(flat, problem.theta),))[1]
        return _flattened(_times(precondition, bent)) - steps.damping * flat

    def pushed(parameters: Parameters) -> Parameters:
        start = _flattened(_times(precondition, parameters))
        return _unflattened(neumann_sum(curvature, start, steps.alpha, steps.order), problem.theta)

    moved = pushed(problem.ascent())
    v = problem.pull({name: p + moved[name] for name, p in problem.theta.items()})
    return problem.along(pushed(v)) / problem.count


def _unrolled(problem: _Problem, alpha: float, count: int, precondition: Parameters | None) -> Array:
    advantages = problem.weights.clone().requires_grad_()
    before = problem.log_probs(problem.theta).detach()
    theta = {name: p.clone().requires_grad_() for name, p in problem.theta.items()}
    for _ in range(count):
        surrogate = (torch.exp(problem.log_probs(theta) - before) * advantages).sum() / problem.count
        slopes = torch.autograd.grad(surrogate, list(theta.values()), create_graph=True, materialize_grads=True)
        step = _times(precondition, dict(zip(theta, slopes, strict=True)))
        theta = {name: p + alpha * step[name] for name, p in theta.items()}
    performance = (torch.exp(problem.log_probs(theta) - before) * problem.task).sum() / problem.counted
    (g,) = torch.autograd.grad(performance, advantages)
    result: Array = g.cpu().numpy().astype(np.float64)
    return result


def second_moment(rollout: Rollout) -> Parameters | None:
    """diag(1 / (sqrt(v) + eps)) with Adam's unbiased second moments v as they are, by parameter of ``rollout.log_prob``.

    0 for parameters that never had a gradient. None before the first update.

    :raises BindingError: the optimiser keeps no second moments.
    """
    optimizer = rollout.optimizer
    if not isinstance(optimizer, torch.optim.Adam):
        raise BindingError(
            f"precond: adam reads the second moments of Adam, and the policy's optimiser is {type(optimizer).__name__}",
            where="plugins.reward_shaping.outer.precond",
            do="Use precond: none, or a trainer with Adam such as PPO",
        )
    if not optimizer.state:
        return None
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    scales: Parameters = {}
    for name, parameter in rollout.log_prob.named_parameters():
        state = optimizer.state.get(parameter)
        if not state:
            scales[name] = torch.zeros_like(parameter)
            continue
        group = groups[id(parameter)]
        unbiased = state["exp_avg_sq"] / (1.0 - group["betas"][1] ** float(state["step"]))
        scales[name] = 1.0 / (unbiased.sqrt() + group["eps"])
    return scales


def check_differentiable(rollout: Rollout, steps: PolicySteps) -> None:
    """Whether policy and optimiser give what ``steps`` need; asked early, for a sparse task's first gradient may come late.

    :raises BindingError: no log-probability of stored actions, or no second moments.
    """
    like = next(iter(rollout.log_prob.parameters()))

    def first(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: first(item) for key, item in part.items()}
        return torch.as_tensor(part[0], device=like.device)  # (n, ...)

    with torch.no_grad():
        rollout.log_prob(first(rollout.obs), first(rollout.actions))
    if steps.adam:
        second_moment(rollout)


def _check_moved_by_adam(scales: Parameters, slopes: Parameters) -> None:
    """Every parameter that the policy's surrogate depends on must have a second moment: those of TRPO's actor have none."""
    still = [name for name, slope in slopes.items() if slope.any() and not scales[name].any()]
    if still:
        raise BindingError(
            f"precond: adam reads the second moments of Adam, which does not move this trainer's policy ({still[0]})",
            where="plugins.reward_shaping.outer.precond",
            do="Use precond: none, or a trainer with Adam such as PPO",
        )


def _times(scales: Parameters | None, vector: Parameters) -> Parameters:
    return vector if scales is None else {name: scales[name] * part for name, part in vector.items()}


def _flattened(parameters: Parameters) -> torch.Tensor:
    return torch.cat([part.flatten() for part in parameters.values()])


def _unflattened(flat: torch.Tensor, like: Parameters) -> Parameters:
    parts = torch.split(flat, [p.numel() for p in like.values()])
    return {name: part.view_as(p) for (name, p), part in zip(like.items(), parts, strict=True)}


def _flat(obs: Any, tensor: Callable[[Array], torch.Tensor]) -> Any:
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

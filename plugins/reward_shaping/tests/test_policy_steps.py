"""Neumann series, unrolled steps and Adam's second moment: against linear algebra and autograd through the update (O5)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from budwood.api import BindingError, Rollout
from budwood_reward_shaping.hypergrad import reward_adjoint
from budwood_reward_shaping.policy_steps import PolicySteps, neumann_sum, second_moment


class GaussianLogProb(nn.Module):
    def __init__(self, obs: int = 3, actions: int = 2) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(obs, 6), nn.Tanh(), nn.Linear(6, actions)).double()
        self.log_std = nn.Parameter(torch.zeros(actions, dtype=torch.float64))

    def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Normal(self.mean(obs), self.log_std.exp()).log_prob(actions).sum(dim=-1)


def made(seed: int = 0, steps: int = 30, n: int = 3, trained: bool = False) -> Rollout:
    """Every sample an episode, so that advantages are rewards; ``trained``: Adam has moved the policy before."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    log_prob = GaussianLogProb()
    optimizer = torch.optim.Adam(log_prob.parameters(), lr=1e-3)
    obs, actions = rng.normal(size=(steps, n, 3)), rng.normal(size=(steps, n, 2))
    if trained:
        for _ in range(4):
            optimizer.zero_grad()
            flat = torch.as_tensor(obs).flatten(0, 1), torch.as_tensor(actions).flatten(0, 1)
            (log_prob(*flat) * torch.as_tensor(rng.normal(size=steps * n))).mean().backward()
            optimizer.step()
    terms = np.stack([rng.normal(size=(steps, n)), rng.random((steps, n)) < 0.4, rng.normal(size=(steps, n))], axis=-1)
    return Rollout(
        obs=obs, actions=actions, terms=terms, columns=(), rewards=terms[..., 2], values=np.zeros((steps, n)),
        advantages=terms[..., 2], episode_starts=np.ones((steps, n)), last_dones=np.ones(n, bool), gamma=0.9, gae_lambda=0.9,
        log_prob=log_prob, after_transforms=lambda: None, optimizer=optimizer,
    )  # fmt: skip


class Reference:
    """The task's surrogate after steps of the policy, as plain autograd through rewards, normaliser and steps."""

    def __init__(self, rollout: Rollout, adam: bool) -> None:
        self.rollout = rollout
        self.theta = {name: p.detach() for name, p in rollout.log_prob.named_parameters()}
        self.inputs = torch.as_tensor(rollout.obs).flatten(0, 1), torch.as_tensor(rollout.actions).flatten(0, 1)
        task = torch.as_tensor(rollout.terms[..., 1]).flatten()
        self.task = (task - task.mean()) / task.std(unbiased=False)
        self.before = self.log_probs(self.flat(self.theta))
        moments = second_moment(rollout) if adam else {name: torch.ones_like(p) for name, p in self.theta.items()}
        self.p = self.flat(moments)

    @staticmethod
    def flat(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([p.flatten() for p in parameters.values()])

    def log_probs(self, flat: torch.Tensor) -> torch.Tensor:
        parts = torch.split(flat, [p.numel() for p in self.theta.values()])
        named = {name: part.view_as(p) for (name, p), part in zip(self.theta.items(), parts, strict=True)}
        return functional_call(self.rollout.log_prob, named, self.inputs)

    def surrogate(self, flat: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
        return (torch.exp(self.log_probs(flat) - self.before) * advantages).mean()

    def gradient(self, move) -> np.ndarray:
        """``move``(start, normalised advantages) -> parameters after the steps."""
        rewards = torch.tensor(self.rollout.rewards, dtype=torch.float64, requires_grad=True)
        advantages = ((rewards - rewards.mean()) / rewards.std()).flatten()
        end = move(self.flat(self.theta).requires_grad_(), advantages)
        (slope,) = torch.autograd.grad(self.surrogate(end, self.task), rewards)
        return slope.numpy()

    def unrolled(self, alpha: float, count: int) -> np.ndarray:
        def move(theta: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
            for _ in range(count):
                (step,) = torch.autograd.grad(self.surrogate(theta, advantages), theta, create_graph=True)
                theta = theta + alpha * self.p * step
            return theta

        return self.gradient(move)

    def series(self, alpha: float, order: int, damping: float) -> np.ndarray:
        """With the whole Hessian as a matrix, held constant."""

        def move(theta: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
            fixed = advantages.detach()
            hessian = torch.autograd.functional.hessian(lambda x: self.surrogate(x, fixed), theta.detach())
            (slope,) = torch.autograd.grad(self.surrogate(theta, advantages), theta, create_graph=True)
            eye = torch.eye(len(theta), dtype=theta.dtype)
            shrink = eye + alpha * (self.p[:, None] * hessian - damping * eye)
            return theta + sum(torch.linalg.matrix_power(shrink, m) for m in range(order + 1)) @ (
                alpha * self.p * slope
            )

        return self.gradient(move)


@pytest.mark.parametrize("adam", [False, True])
def test_one_step_is_autograd_through_the_preconditioned_update(adam):
    rollout = made(trained=True)
    alpha = 1e-3 if adam else 0.05
    found = reward_adjoint(rollout, 1, PolicySteps(alpha, adam=adam))
    expected = Reference(rollout, adam).unrolled(alpha, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_unrolled_is_autograd_through_that_many_steps(count, adam):
    rollout = made(trained=True)
    alpha = 1e-3 if adam else 0.1
    found = reward_adjoint(rollout, 1, PolicySteps(alpha, unroll=count, adam=adam))
    expected = Reference(rollout, adam).unrolled(alpha, count)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize(("order", "damping"), [(1, 0.0), (3, 0.0), (3, 0.7), (6, 2.0)])
def test_the_series_is_autograd_through_steps_of_constant_curvature(order, damping, adam):
    rollout = made(trained=True)
    alpha = 1e-3 if adam else 0.1
    found = reward_adjoint(rollout, 1, PolicySteps(alpha, order, damping, adam=adam))
    expected = Reference(rollout, adam).series(alpha, order, damping)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max())


def test_order_0_is_one_step_and_higher_orders_come_closer_to_unrolled_ones():
    rollout = made()
    one = reward_adjoint(rollout, 1, PolicySteps(0.05))
    np.testing.assert_array_equal(reward_adjoint(rollout, 1, PolicySteps(0.05, order=0, damping=5.0)), one)
    through = reward_adjoint(rollout, 1, PolicySteps(0.05, unroll=4))
    series = reward_adjoint(rollout, 1, PolicySteps(0.05, order=3))

    def apart(g: np.ndarray) -> float:
        return float(np.linalg.norm(g - through) / np.linalg.norm(through))

    assert apart(series) < 0.2 * apart(one)


def test_neumann_sum_tends_to_the_inverse():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    h = -(root @ root.T + np.eye(4))
    eta = 1.0 / np.abs(np.linalg.eigvalsh(h)).max()
    v = rng.normal(size=4)
    np.testing.assert_allclose(neumann_sum(lambda x: h @ x, v, eta, 2000), -np.linalg.solve(h, v), rtol=1e-9)
    np.testing.assert_array_equal(neumann_sum(lambda x: h @ x, v, eta, 0), eta * v)


def test_second_moments_are_what_adam_divides_by():
    """Adam moves a parameter by lr x its unbiased first moment x the preconditioner of the moment after that step."""
    rollout = made(trained=True)
    before = {name: p.detach().clone() for name, p in rollout.log_prob.named_parameters()}
    torch.manual_seed(1)
    for parameter in rollout.log_prob.parameters():
        parameter.grad = torch.randn_like(parameter)
    rollout.optimizer.step()
    scales = second_moment(rollout)
    for name, parameter in rollout.log_prob.named_parameters():
        first = rollout.optimizer.state[parameter]["exp_avg"] / (1 - 0.9**5)
        torch.testing.assert_close(parameter, before[name] - 1e-3 * first * scales[name], rtol=1e-12, atol=1e-14)


def test_a_fresh_optimiser_tells_nothing_and_another_kind_is_refused():
    assert reward_adjoint(made(), 1, PolicySteps(1e-3, adam=True)) is None
    rollout = made()
    rollout = Rollout(**{**rollout.__dict__, "optimizer": torch.optim.SGD(rollout.log_prob.parameters(), lr=0.1)})
    with pytest.raises(BindingError, match="the policy's optimiser is SGD"):
        reward_adjoint(rollout, 1, PolicySteps(1e-3, adam=True))


def test_an_optimiser_that_moves_only_the_critic_is_refused():
    """As TRPO's does: the policy would seem to have no gradient."""
    rollout = made()
    critic = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = torch.optim.Adam([*rollout.log_prob.parameters(), critic])
    critic.square().sum().backward()
    optimizer.step()
    with pytest.raises(BindingError, match="which does not move this trainer's policy \\(log_std\\)"):
        reward_adjoint(Rollout(**{**rollout.__dict__, "optimizer": optimizer}), 1, PolicySteps(1e-3, adam=True))


def test_parameters_without_a_gradient_are_not_moved():
    rollout = made(trained=True)
    rollout.log_prob.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    assert torch.equal(second_moment(rollout)["unused"], torch.zeros(3, dtype=torch.float64))

"""The policy gradient of a chain: its score averages to zero, and with a reward to the closed-form gradient (T7)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from budwood_flow_rl.chains import Chain, log_prob, rollout
from budwood_flow_rl.kernels import FlowCPS, FlowSDE, Kernel, NoisyEuler

D = 2
BATCHES, ROWS = 60, 4_000
GOAL = torch.tensor([0.8, -0.3], dtype=torch.float64)


class Linear(nn.Module):
    """v = W x + b, whatever the time."""

    horizon, action_dim = 1, D

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.tensor([[0.3, -0.2], [0.1, -0.5]], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.4, -0.1], dtype=torch.float64))

    def velocity(self, x, s, o, h=None):
        return x @ self.W.T + self.b, s[:, None]


class Sigma(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor([[-0.7, -1.2]], dtype=torch.float64))

    def forward(self, feat):
        return self.log.exp().expand(len(feat), 1, D)


def expected_reward(field: Linear, kernel: Kernel) -> torch.Tensor:
    """E[-||x_K - g||^2] through the Gaussian moments of linear steps, differentiable."""
    if not kernel.hybrid:
        return reward_of_steps(field, kernel, set(range(kernel.noisy_steps)))
    return torch.stack([reward_of_steps(field, kernel, {k}) for k in range(kernel.noisy_steps)]).mean()


def reward_of_steps(field: Linear, kernel: Kernel, stochastic: set[int]) -> torch.Tensor:
    mean, covariance = torch.zeros(D, dtype=torch.float64), torch.eye(D, dtype=torch.float64)
    for k in range(kernel.steps):
        points = torch.cat([torch.zeros(1, D), torch.eye(D)]).double()[:, None]
        out, std, _ = kernel.step_dist(field, points, torch.full((D + 1,), k), points, k in stochastic)
        shift, matrix = out[0, 0], (out[1:, 0] - out[0, 0]).T
        mean, covariance = matrix @ mean + shift, matrix @ covariance @ matrix.T
        if std is not None:
            covariance = covariance + torch.diag(std[0, 0] ** 2)
    return -(covariance.trace() + (mean - GOAL).square().sum())


def made(name: str) -> tuple[Linear, Kernel]:
    return Linear(), {
        "one step": lambda: NoisyEuler(1, Sigma()),
        "three steps": lambda: NoisyEuler(3, Sigma()),
        "truncated": lambda: NoisyEuler(2, Sigma(), truncate=1.5),
        "sde": lambda: FlowSDE(3, 0.7),
        "cps": lambda: FlowCPS(3, 0.5),
        "hybrid": lambda: FlowSDE(3, 0.7, hybrid=True),
    }[name]()


def gradients(field: Linear, kernel: Kernel, weigh) -> torch.Tensor:
    """(BATCHES, parameters): of the mean over a batch of weigh(chain) log p(chain)."""
    torch.manual_seed(0)
    parameters, rows = [*field.parameters(), *kernel.parameters()], []
    for _ in range(BATCHES):
        chain = rollout(field, kernel, torch.zeros(ROWS, 1), x0=torch.randn(ROWS, 1, D, dtype=torch.float64))
        score = log_prob(field, kernel, chain, torch.zeros(ROWS, 1)).elements.sum((1, 2))
        found = torch.autograd.grad((weigh(chain) * score).mean(), parameters)
        rows.append(torch.cat([gradient.flatten() for gradient in found]))
    return torch.stack(rows)


def standardised(gradients: torch.Tensor, expected: torch.Tensor | float) -> torch.Tensor:
    return (gradients.mean(0) - expected) / (gradients.std(0) / BATCHES**0.5)


@pytest.mark.parametrize("name", ["one step", "three steps", "truncated", "sde", "cps", "hybrid"])
def test_the_score_averages_to_zero(name):
    field, kernel = made(name)
    found = gradients(field, kernel, lambda chain: 1.0)
    if (
        name == "truncated"
    ):  # a cut-off's place depends on the parameters: the score is zero in the mean only away from it
        found = found[:, : D * D + D]
    assert standardised(found, 0.0).abs().max() < 4.5
    assert found.std(0).min() > 0


def reward(chain: Chain) -> torch.Tensor:
    return -(chain.actions[:, 0] - GOAL).square().sum(-1) + 2.0


@pytest.mark.parametrize("name", ["one step", "three steps", "sde"])
def test_reward_times_score_is_the_closed_form_gradient(name):
    field, kernel = made(name)
    parameters = [*field.parameters(), *kernel.parameters()]
    exact = torch.autograd.grad(expected_reward(field, kernel), parameters, allow_unused=True)
    expected = torch.cat([gradient.flatten() for gradient in exact])
    found = gradients(field, kernel, reward)
    assert standardised(found, expected).abs().max() < 4.5
    assert (expected.abs() / (found.std(0) / BATCHES**0.5)).max() > 20, "the test can tell it from zero"


@pytest.mark.parametrize("name", ["cps", "hybrid"])
def test_what_deterministic_steps_add_to_the_gradient_is_no_part_of_a_score(name):
    field, kernel = made(name)
    parameters = [*field.parameters()]
    exact = torch.autograd.grad(expected_reward(field, kernel), parameters)
    expected = torch.cat([gradient.flatten() for gradient in exact])
    found = gradients(field, kernel, reward)
    assert standardised(found, expected).abs().max() > 4.5
    cosine = torch.nn.functional.cosine_similarity(found.mean(0), expected, dim=0)
    assert cosine > 0.8, "it points uphill all the same"


def test_one_step_gradient_in_figures():
    """E[R] = -(||I + W||_F^2 + ||b - g||^2 + sum sigma^2)."""
    field, kernel = made("one step")
    gradient = torch.autograd.grad(expected_reward(field, kernel), [*field.parameters(), *kernel.parameters()])
    eye = torch.eye(D, dtype=torch.float64)
    expected = [-2 * (eye + field.W), -2 * (field.b - GOAL), -2 * (2 * kernel.noise.log).exp()]
    for one, other in zip(gradient, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)

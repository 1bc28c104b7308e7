"""The SDE's steps: against the textbook, exact moments, Monte Carlo and the ODE sampler."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from budwood.api import ConfigError
from budwood_flow_rl.chains import rollout
from budwood_flow_rl.families import FAMILIES, sample
from budwood_flow_rl.kernels import FlowCPS, FlowSDE, Kernel, NoisyEuler
from budwood_flow_rl.noise import NoiseNet

M, Q = 0.3, 0.5


def affine(t: float) -> tuple[float, float]:
    """Slope and intercept of E[e - a | x] in noise time for data N(M, Q^2)."""
    variance = (1 - t) ** 2 * Q**2 + t**2
    slope = (t - (1 - t) * Q**2) / variance
    return slope, -M - slope * (1 - t) * M


class GaussianData(nn.Module):
    """The exact velocity for data N(M, Q^2): one step of one dimension."""

    horizon = action_dim = 1

    def velocity(self, x, s, o, h=None):
        t = (1 - s)[:, None, None]
        variance = (1 - t) ** 2 * Q**2 + t**2
        slope = (t - (1 - t) * Q**2) / variance
        return -(slope * x - M - slope * (1 - t) * M), s[:, None]


def textbook(K: int, sigma2: Callable[[float], float]) -> tuple[float, float]:
    """Mean and std of x_K by the exact recursion of Euler-Maruyama in noise time, for a variance rate sigma_t^2."""
    mean, variance, d = 0.0, 1.0, 1 / K
    for k in range(K):
        t = 1 - k / K
        slope, intercept = affine(t)
        noise = t - d - sigma2(t) * d / (2 * t)  # the weight of x1 = x + (1 - t) v; that of x0 = x - t v is 1 - t + d
        a = (1 - t + d) * (1 - t * slope) + noise * (1 + (1 - t) * slope)
        c = (1 - t + d) * (-t * intercept) + noise * (1 - t) * intercept
        mean, variance = a * mean + c, a**2 * variance + d * sigma2(t)
    return mean, math.sqrt(variance)


def schedule(K: int, level: float) -> Callable[[float], float]:
    return lambda t: level**2 * t / (1 - t if t < 1 else 1 / K)


def moments(kernel: Kernel) -> tuple[float, float]:
    """Mean and std of x_K from the kernel's own steps, each of them affine in x."""
    field, mean, variance = GaussianData(), 0.0, 1.0
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None, None]
    for step in range(kernel.steps):
        out, std, _ = kernel.step_dist(field, ends, torch.full((2,), step), ends)
        at_0, at_1 = out.flatten().tolist()
        mean, variance = (at_1 - at_0) * mean + at_0, (at_1 - at_0) ** 2 * variance + std[0].item() ** 2
    return mean, math.sqrt(variance)


# ---- T4 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("K", "ode", "sde"), [(4, 0.3405, 0.4133), (10, 0.4308, 0.4627), (100, 0.4926, 0.4986)])
def test_moments_follow_the_exact_recursion(K, ode, sde):
    mean, std = moments(FlowSDE(K, 0.5))
    assert (mean, std) == pytest.approx(textbook(K, schedule(K, 0.5)), abs=1e-9)
    assert std == pytest.approx(sde, abs=5e-5)
    assert moments(FlowSDE(K, 0.0))[1] == pytest.approx(ode, abs=5e-5)


@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize("K", [4, 10])
def test_samples_have_those_moments(K, hybrid):
    n = 100_000
    generator = torch.Generator().manual_seed(K)
    kernel = FlowSDE(K, 0.5, hybrid=hybrid)
    chain = rollout(GaussianData(), kernel, torch.zeros(n, 1), generator=generator)
    for k in range(K) if hybrid else [None]:
        x = chain.actions.flatten().double() if k is None else chain.actions.flatten()[chain.k == k].double()

        def sigma2(t: float, k: int | None = k) -> float:
            return schedule(K, 0.5)(t) if k is None or round((1 - t) * K) == k else 0.0

        mean, std = textbook(K, sigma2)
        assert abs(x.mean().item() - mean) < 4 * std / math.sqrt(len(x))
        assert abs(x.std().item() - std) < 4 * std / math.sqrt(2 * len(x))


def test_limits_of_many_steps():
    bounded = [textbook(K, lambda t: 0.25 * t)[1] for K in (100, 1_000, 20_000)]
    assert bounded == pytest.approx([0.49372, 0.49937, 0.49997], abs=5e-6), "the data's 0.5, approached like 1/K"
    slow = [moments(FlowSDE(K, 0.5))[1] for K in (100, 1_000)] + [textbook(20_000, schedule(20_000, 0.5))[1]]
    assert slow == pytest.approx([0.49864, 0.50129, 0.50079], abs=5e-6)
    assert all(abs(std - Q) < 0.005 * Q for std in slow)


# ---- T5 ------------------------------------------------------------------------------------------------------------------


def stock(field, o, K, x):
    for k in range(K):
        v, _ = field.velocity(x, torch.tensor([k / K]).expand(len(x)), o, torch.tensor([1 / K]).expand(len(x)))
        x = x + 1 / K * v
    return x


@pytest.mark.parametrize("K", [1, 2, 3, 4, 7, 8, 10])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_noise_a_chain_is_the_stock_sampler_bit_for_bit(family, K):
    torch.manual_seed(K)
    field, o, x0 = FAMILIES[family](5, 2, 3, hidden=(32, 32, 32)), torch.randn(9, 5), torch.randn(9, 2, 3)
    noise = NoiseNet(field.feat_dim, 2, 3, (8,), 0.1, 0.2)
    with torch.no_grad():
        expected = stock(field, o, K, x0)
        assert torch.equal(sample(field, o, K, x0), expected)
        kernels: list[Kernel] = [NoisyEuler(K, noise)]
        if K > 1:
            kernels += [FlowSDE(K, 0.5), FlowSDE(K, 0.5, hybrid=True), FlowCPS(K, 0.5)]
            silent = rollout(field, FlowSDE(K, 0.0), o, x0)
            assert torch.equal(silent.actions, expected), "a = 0"
            assert torch.equal(rollout(field, FlowSDE(K, 0.0, hybrid=True), o, x0).actions, expected)
        for kernel in kernels:
            assert torch.equal(rollout(field, kernel, o, x0, noise_free=True).actions, expected)


# ---- T6 ------------------------------------------------------------------------------------------------------------------


def test_the_stable_drift_is_the_textbooks_and_finite_on_every_grid():
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None, None]
    for K in range(2, 101):
        kernel, field, d = FlowSDE(K, 0.7), GaussianData(), 1 / K
        for k in range(K):
            mean, std, _ = kernel.step_dist(field, x, torch.full((7,), k), x)
            assert torch.isfinite(mean).all()
            assert torch.isfinite(std).all()
            assert (std > 0).all()
            t = 1 - k / K
            slope, intercept = affine(t)
            v = slope * x + intercept
            sigma2 = 0.7**2 * t / (1 - t if k else 1 / K)
            drifted = (1 - t + d) * (x - t * v) + (t - d - sigma2 * d / (2 * t)) * (x + (1 - t) * v)
            assert torch.allclose(mean, drifted, rtol=0, atol=1e-6)
            assert std.max().item() == pytest.approx(math.sqrt(d * sigma2), abs=1e-6)


@pytest.mark.parametrize(
    ("K", "stds"),
    [
        (4, [0.500, 0.433, 0.250, 0.144]),
        (10, [0.500, 0.474, 0.316, 0.242, 0.194, 0.158, 0.129, 0.104, 0.079, 0.053]),
    ],
)
def test_std_of_the_steps(K, stds):
    assert FlowSDE(K, 0.5).coefficients()[:, 2].tolist() == pytest.approx(stds, abs=6e-4)


def test_one_step_is_degenerate_and_refused():
    with pytest.raises(ConfigError, match="degenerate"):
        FlowSDE(1, 0.5)
    with pytest.raises(ConfigError, match="leaves no step"):
        FlowCPS(1, 0.5)


# ---- coefficient-preserving steps ------------------------------------------------------------------------------------


def test_coefficients_are_preserved():
    """With exact x0 and x1 predictions of point data, x keeps the std that belongs to its time whatever the level."""

    class Point(nn.Module):
        horizon = action_dim = 1

        def velocity(self, x, s, o, h=None):
            return (M - x) / (1 - s)[:, None, None], s[:, None]  # data at M: a = M, e = (x - s M)/(1 - s)

    torch.manual_seed(0)
    for level in (0.2, 0.8):
        x = rollout(Point(), FlowCPS(5, level), torch.zeros(100_000, 1)).x.double()[..., 0, 0]
        for k in range(6):
            assert x[:, k].mean().item() == pytest.approx(M * k / 5, abs=0.01)
            assert x[:, k].std().item() == pytest.approx(1 - k / 5, abs=0.01)

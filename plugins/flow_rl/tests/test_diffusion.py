"""The diffusion peer against Bayes' rule, exact moments and its own training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from budwood.api import ConfigError
from budwood_flow_rl.chains import log_prob, rollout
from budwood_flow_rl.diffusion import DDPM, Diffusion, cosine_signal
from budwood_flow_rl.families import RectifiedFlow


class Exact(nn.Module):
    """The best prediction of the noise for data N(m, q^2), whatever the level."""

    horizon = action_dim = 1

    def __init__(self, steps: int, m: float, q: float) -> None:
        super().__init__()
        self.steps, self.m, self.q = steps, m, q
        self.signal = cosine_signal(steps)

    def velocity(self, x, s, o, h=None):
        left = self.signal[self.steps - 1 - (s * self.steps).round().long()][:, None, None].to(x.dtype)
        variance = left * self.q**2 + 1 - left
        return (1 - left).sqrt() * (x - left.sqrt() * self.m) / variance, o


def test_the_posterior_is_bayes_rule():
    kernel = DDPM(10)
    x, action = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-0.4, dtype=torch.float64)
    grid = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    for t in range(1, 10):
        now, below = kernel.signal[t], kernel.signal[t - 1]
        kept = now / below
        # p(x_{t-1} | x_t, a) is proportional to p(x_t | x_{t-1}) p(x_{t-1} | a), both Gaussian
        density = torch.exp(
            -((x - kept.sqrt() * grid) ** 2) / (2 * (1 - kept))
            - (grid - below.sqrt() * action) ** 2 / (2 * (1 - below))
        )
        mean = (density * grid).sum() / density.sum()
        std = ((density * (grid - mean) ** 2).sum() / density.sum()).sqrt()
        e = (x - now.sqrt() * action) / (1 - now).sqrt()
        found = kernel.posterior(x.reshape(1, 1, 1), e.reshape(1, 1, 1), torch.tensor([t]))
        assert found[0].item() == pytest.approx(mean.item(), abs=1e-6)
        assert found[1].item() == pytest.approx(std.item(), abs=1e-6)


def test_ancestral_sampling_has_the_moments_of_the_exact_recursion():
    m, q, steps, n = 0.1, 0.15, 20, 100_000
    field, kernel = Exact(steps, m, q), DDPM(steps, smallest=0.0)
    mean, variance = 0.0, 1.0  # of x_0
    for k in range(steps):
        t = steps - 1 - k
        now = kernel.signal[t].item()
        below = kernel.signal[t - 1].item() if t else 1.0
        kept = now / below
        # the predicted action is affine in x: a = m + slope (x - sqrt(now) m)
        slope = now**0.5 * q**2 / (now * q**2 + 1 - now)
        by_action, by_x = below**0.5 * (1 - kept) / (1 - now), kept**0.5 * (1 - below) / (1 - now)
        gain = by_action * slope + by_x
        mean = by_action * m * (1 - slope * now**0.5) + gain * mean
        variance = gain**2 * variance + (1 - kept) * (1 - below) / (1 - now)
    generator = torch.Generator().manual_seed(0)
    x = rollout(field, kernel, torch.zeros(n, 1), generator=generator).actions.flatten()
    assert abs(x.mean().item() - mean) < 4 * (variance / n) ** 0.5
    assert x.std().item() == pytest.approx(variance**0.5, rel=4 / (2 * n) ** 0.5)
    assert mean == pytest.approx(m, abs=0.005)
    assert variance**0.5 < q  # too narrow, as a posterior of fixed width makes it


def test_a_chain_scores_the_same_when_it_is_replayed():
    torch.manual_seed(0)
    field, kernel, o = Diffusion(3, 2, 2, hidden=(32, 32, 32), steps=6), DDPM(6), torch.randn(64, 3)
    chain = rollout(field, kernel, o)
    replayed = log_prob(field, kernel, chain, o)
    assert (replayed.elements - chain.log_prob.elements).sum((1, 2)).abs().max() < 1e-4
    assert replayed.std.min() >= kernel.smallest


def test_without_exploration_the_last_step_has_no_noise():
    torch.manual_seed(0)
    field, kernel, o = Diffusion(1, 1, 1, hidden=(32, 32, 32), steps=4), DDPM(4), torch.zeros(8, 1)
    chain = rollout(field, kernel, o, noise_free=True)
    last, std, _ = kernel.step_dist(field, chain.x[:, 3], torch.full((8,), 3), o, noisy=False)
    assert std is not None
    assert std.max() == 0
    torch.testing.assert_close(chain.actions, last)


def test_training_finds_both_modes():
    torch.manual_seed(0)
    field = Diffusion(1, 1, 1, hidden=(64, 64, 64), steps=10)
    optimizer = torch.optim.AdamW(field.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(800):
        side = torch.randint(2, (128, 1, 1), generator=generator) * 2.0 - 1
        loss = field.pretrain_loss(
            0.6 * side + 0.05 * torch.randn(side.shape, generator=generator), torch.zeros(128, 1)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = rollout(field, DDPM(10), torch.zeros(2000, 1), noise_free=True, generator=generator).actions.flatten()
    assert 0.4 < (x > 0).float().mean().item() < 0.6
    assert ((x.abs() - 0.6).abs() < 0.25).float().mean().item() > 0.85


def test_a_flow_is_refused():
    with pytest.raises(ConfigError, match="needs a diffusion policy"):
        rollout(RectifiedFlow(1, 1, 1, hidden=(8, 8, 8)), DDPM(4), torch.zeros(2, 1))

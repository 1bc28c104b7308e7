"""The diffusion peer against Bayes' rule, exact moments and its own training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from budwood.api import ConfigError
from budwood_flow_rl.chains import log_prob, rollout
from budwood_flow_rl.diffusion import DDPM, Diffusion, cosine_signal, denoised, posterior
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
        found = posterior(x, action, now, below)
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


def test_without_noise_a_chain_is_given_by_its_start_and_ends_at_the_predicted_action():
    torch.manual_seed(0)
    field, kernel, o, x0 = (
        Diffusion(1, 1, 1, hidden=(32, 32, 32), steps=4),
        DDPM(4),
        torch.zeros(8, 1),
        torch.randn(8, 1, 1),
    )
    chain = rollout(field, kernel, o, x0, noise_free=True)
    torch.testing.assert_close(denoised(field, o, 4, x0), chain.actions, rtol=0, atol=0)
    e, _ = field.velocity(chain.x[:, 3], torch.full((8,), 0.75), o)
    left = kernel.signal[0].float()
    action = (chain.x[:, 3] - (1 - left).sqrt() * e) / left.sqrt()
    torch.testing.assert_close(chain.actions, action.clamp(-1, 1))


def test_without_noise_the_moments_of_gaussian_data_follow_the_exact_map():
    """DDIM is affine here: x' = below^0.5 a + (1 - below)^0.5 e with a and e affine in x."""
    m, q, steps = 0.1, 0.15, 20
    field, kernel = Exact(steps, m, q), DDPM(steps)
    slope, offset = 1.0, 0.0  # of x_k in x_0
    for k in range(steps):
        now, below = (each.item() for each in kernel.levels(torch.tensor([steps - 1 - k]), torch.float64))
        gain = now**0.5 * q**2 / (now * q**2 + 1 - now)  # a = m + gain (x - now^0.5 m)
        left, right = below**0.5, ((1 - below) / (1 - now)) ** 0.5
        by_x = left * gain + right * (1 - now**0.5 * gain)
        offset = by_x * offset + (left - right * now**0.5) * m * (1 - gain * now**0.5)
        slope *= by_x
    x0 = torch.linspace(-2, 2, 9).reshape(-1, 1, 1)
    torch.testing.assert_close(denoised(field, torch.zeros(9, 1), steps, x0), slope * x0 + offset, rtol=0, atol=1e-5)


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
    x = rollout(field, DDPM(10, smallest=1e-3), torch.zeros(2000, 1), generator=generator).actions.flatten()
    assert 0.4 < (x > 0).float().mean().item() < 0.6
    assert ((x.abs() - 0.6).abs() < 0.25).float().mean().item() > 0.85


def test_a_flow_is_refused():
    with pytest.raises(ConfigError, match="needs a diffusion policy"):
        rollout(RectifiedFlow(1, 1, 1, hidden=(8, 8, 8)), DDPM(4), torch.zeros(2, 1))

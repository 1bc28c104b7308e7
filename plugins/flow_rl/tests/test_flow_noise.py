"""Learned noise and its range (T9), truncation, and what is said of numbers that are not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

from budwood.api import BindingError, ConfigError, ContributionError
from budwood_flow_rl.chains import entropy, flatten, log_density, log_prob, normal, rollout, unflatten
from budwood_flow_rl.families import RectifiedFlow
from budwood_flow_rl.kernels import FlowSDE, NoisyEuler
from budwood_flow_rl.noise import SCHEDULES, NoiseNet


@pytest.fixture
def field():
    torch.manual_seed(0)
    return RectifiedFlow(5, 2, 3, hidden=(16, 16, 16))


def noise(field, **options) -> NoiseNet:
    return NoiseNet(field.feat_dim, 2, 3, (16, 16), 0.08, 0.16, **options)


# ---- T9 ------------------------------------------------------------------------------------------------------------------


def test_sigma_stays_within_its_range_and_begins_at_the_geometric_mean(field):
    net = noise(field)
    feat = 50 * torch.randn(1000, field.feat_dim)
    assert net(feat).shape == (1000, 2, 3)
    assert net(feat).min() > 0.08
    assert net(feat).max() < 0.16
    for parameter in net.layers[-1].parameters():
        torch.nn.init.zeros_(parameter)
    assert net(feat).flatten().tolist() == pytest.approx([math.sqrt(0.08 * 0.16)] * 6000, rel=1e-6)
    torch.nn.init.constant_(net.layers[-1].bias, 0.5)
    log_variance = 2 * math.log(0.08) + (2 * math.log(0.16) - 2 * math.log(0.08)) * (math.tanh(0.5) + 1) / 2
    assert net(feat)[0, 0, 0].item() == pytest.approx(math.exp(log_variance / 2), rel=1e-6)


def test_the_range_is_neither_trained_nor_saved_and_one_in_an_older_checkpoint_is_passed_over(field):
    kernel, other = NoisyEuler(4, noise(field)), NoisyEuler(4, noise(field))
    kernel.noise.set_range(0.03, 0.3)
    other.noise.set_range(0.05, 0.2)
    saved, now = kernel.state_dict(), other.noise.middle.clone()
    assert not [name for name in saved if "layers" not in name]
    assert "middle" not in dict(kernel.noise.named_parameters())
    other.load_state_dict(saved)
    other.load_state_dict({**saved, "noise.middle": torch.zeros(()), "noise.reach": torch.zeros(())})
    assert torch.equal(other.noise.middle, now), "a policy that is reset to a saved one keeps the range of now"
    assert torch.equal(other.noise.layers[0].weight, kernel.noise.layers[0].weight)
    with pytest.raises(RuntimeError, match=r"noise\.width"):
        other.load_state_dict({**saved, "noise.width": torch.zeros(())})


def test_noise_of_tokens_and_noise_that_does_not_read_the_time(field):
    tokens = NoiseNet(8, 2, 3, (128, 64), 0.08, 0.16, per_token=True)
    hidden = torch.randn(4, 2, 8, dtype=torch.bfloat16)
    assert tokens(hidden).shape == (4, 2, 3)
    assert tokens(hidden).dtype == torch.float32
    moved = hidden.clone()
    moved[:, 1] += 1
    assert torch.equal(tokens(moved)[:, 0], tokens(hidden)[:, 0]), "a token's noise reads that token"

    o, x = torch.randn(4, 5), torch.randn(4, 2, 3)
    _, early = field.velocity(x, torch.zeros(4), o)
    _, late = field.velocity(x, torch.full((4,), 0.75), o)
    blind, seeing = noise(field, skip=field.time_dim), noise(field)
    assert torch.equal(blind(early), blind(late))
    assert not torch.equal(seeing(early), seeing(late))


def test_schedules_at_their_marks():
    smin, smax = 0.10, 0.24
    assert set(SCHEDULES) == {"learn", "learn_decay", "const", "const_schedule_itr"}
    for progress in (0.0, 0.35, 1.0):
        assert SCHEDULES["learn"](progress, smin, smax) == (smin, smax)
        assert SCHEDULES["const"](progress, smin, smax) == (smin, smin)
    decay = [SCHEDULES["learn_decay"](progress, smin, smax) for progress in (0.0, 0.35, 0.675, 1.0)]
    end = 0.3 * smin + 0.7 * smax
    assert [low for low, _ in decay] == [smin] * 4
    assert [high for _, high in decay] == pytest.approx([smax, smax, (smax + end) / 2, end])
    scalar = [SCHEDULES["const_schedule_itr"](p, 0.016, 0.08) for p in (0, 0.005, 0.01, 0.3, 0.65, 1)]
    assert all(low == high for low, high in scalar)
    assert [low for low, _ in scalar] == pytest.approx([0.016, 0.048, 0.08, 0.08, 0.048, 0.016])


@pytest.mark.parametrize(("smin", "smax"), [(0.0, 0.1), (0.2, 0.1), (0.1, math.inf), (-1.0, 1.0), (math.nan, 0.1)])
def test_a_range_that_is_none_is_refused(field, smin, smax):
    with pytest.raises(ConfigError, match="no range"):
        noise(field).set_range(smin, smax)


# ---- truncation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0.7, 3.0])
def test_truncated_noise_has_the_density_and_entropy_that_are_reported(cut):
    torch.manual_seed(1)
    z = normal((400_000,), None, torch.device("cpu"), torch.float64, truncate=cut)
    assert z.abs().max() <= cut
    assert (z.abs() > 0.999 * cut).double().mean() < 2e-3, "cut off, not clamped: no heap at the edge"
    std = torch.tensor(0.3, dtype=torch.float64)
    density, expected = log_density(0.3 * z, torch.zeros_like(z), std, cut), entropy(std, cut).item()
    grid = torch.linspace(-cut, cut, 20_001, dtype=torch.float64) * 0.3
    on_grid = log_density(grid, torch.zeros_like(grid), std, cut)
    assert torch.trapezoid(on_grid.exp(), grid).item() == pytest.approx(1, abs=1e-6)
    assert torch.trapezoid(-on_grid.exp() * on_grid, grid).item() == pytest.approx(expected, abs=1e-6)
    assert -density.mean().item() == pytest.approx(expected, abs=4 * density.std().item() / 632)


def test_three_sigmas_move_the_log_density_by_a_constant():
    x = torch.linspace(-0.5, 0.5, 11, dtype=torch.float64)
    mean, std = torch.zeros_like(x), torch.full_like(x, 0.2)
    whole = log_density(x, mean, std)
    assert torch.allclose(whole, Normal(mean, std).log_prob(x), rtol=0, atol=1e-12)
    assert torch.allclose(entropy(std), Normal(mean, std).entropy(), rtol=0, atol=1e-12)
    cut = log_density(x, mean, std, truncate=3.0)
    assert (cut - whole).tolist() == pytest.approx([-math.log(0.9973)] * 11, abs=1e-4)


# ---- bad numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["noise", "sde"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_velocity_that_is_not_finite_is_named_with_its_step_and_share(field, kernel, bad):
    class Broken(RectifiedFlow):
        def velocity(self, x, s, o, h=None):
            v, feat = super().velocity(x, s, o, h)
            return torch.where(((s >= 0.5) & (o[:, 0] > 0))[:, None, None], bad, v), feat

    broken = Broken(5, 2, 3, hidden=(16, 16, 16))
    o = torch.ones(8, 5)
    o[2:] = -1
    made = NoisyEuler(4, noise(field)) if kernel == "noise" else FlowSDE(4, 0.5)
    with pytest.raises(ContributionError) as caught:
        rollout(broken, made, o)
    assert "the velocity of step 2 (of 0..3) is not finite in 25% of 8 rows" in str(caught.value)
    assert "learning rate" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_exploding_noise_and_a_bad_start_are_told_apart(field):
    class Exploding(torch.nn.Module):
        def forward(self, feat):
            return torch.full((len(feat), 2, 3), math.inf)

    with pytest.raises(ContributionError, match="the noise of step 0"):
        rollout(field, NoisyEuler(4, Exploding()), torch.ones(8, 5))
    with pytest.raises(ContributionError, match="the noise that a chain begins with"):
        rollout(field, NoisyEuler(4, noise(field)), torch.ones(8, 5), x0=torch.full((8, 2, 3), math.nan))


# ---- flattened chains, and switches that copy the reference ------------------------------------------------------------


@pytest.mark.parametrize("hybrid", [False, True])
def test_a_chain_survives_being_an_action(field, hybrid):
    o, kernel = torch.randn(6, 5), FlowSDE(4, 0.5, hybrid=hybrid)
    chain = rollout(field, kernel, o)
    flat = flatten(chain)
    assert flat.shape == (6, 5 * 2 * 3 + hybrid)
    back = unflatten(flat, 4, 2, 3, hybrid)
    assert torch.equal(back.x, chain.x)
    assert torch.equal(log_prob(field, kernel, back, o).elements, log_prob(field, kernel, chain, o).elements)
    assert (back.k is None) != hybrid
    with pytest.raises(BindingError, match="no chain of 3 steps"):
        unflatten(flat, 3, 2, 3, hybrid)
    quiet = flatten(rollout(field, kernel, o, noise_free=True))
    assert quiet.shape == flat.shape


def test_a_clipped_mean_loses_its_gradient_where_actions_saturate_and_clips_in_evaluation(field):
    o, x = torch.randn(64, 5), 1.5 * torch.randn(64, 2, 3)
    kernel = NoisyEuler(1, noise(field), clip_mean=1.0)
    mean, _, _ = kernel.step_dist(field, x, torch.zeros(64, dtype=torch.long), o)
    free, _, _ = NoisyEuler(1, noise(field)).step_dist(field, x, torch.zeros(64, dtype=torch.long), o)
    assert torch.equal(mean, free.clamp(-1, 1))
    assert (mean.abs() == 1).any()
    assert rollout(field, kernel, o, x, noise_free=True).actions.abs().max() <= 1


def test_a_clamped_action_is_scored_as_if_it_had_been_drawn(field):
    torch.manual_seed(2)
    o, kernel = torch.randn(64, 5), NoisyEuler(2, noise(field), clamp_last=1.0)
    chain = rollout(field, kernel, o)
    assert chain.actions.abs().max() == 1
    assert chain.x[:, :-1].abs().max() > 1
    mean, std, _ = kernel.step_dist(field, chain.x[:, 1], torch.ones(64, dtype=torch.long), o)
    last = Normal(mean, std).log_prob(chain.actions)
    before = Normal(*kernel.step_dist(field, chain.x[:, 0], torch.zeros(64, dtype=torch.long), o)[:2]).log_prob(
        chain.x[:, 1]
    )
    first = Normal(0, 1).log_prob(chain.x[:, 0])
    assert torch.allclose(chain.log_prob.elements, first + before + last, atol=1e-5)

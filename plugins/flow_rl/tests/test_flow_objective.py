"""Reductions (T13), the clipped loss and its metrics, and regularisers."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from budwood.api import ContributionError, LossInputs
from budwood_flow_rl.chains import log_prob, rollout
from budwood_flow_rl.critic import Critic
from budwood_flow_rl.diffusion import DDPM, Diffusion, denoised
from budwood_flow_rl.families import RectifiedFlow, sample
from budwood_flow_rl.kernels import FlowCPS, FlowSDE, NoisyEuler
from budwood_flow_rl.losses import W2
from budwood_flow_rl.noise import NoiseNet
from budwood_flow_rl.objective import ppo_loss
from budwood_flow_rl.policy import FlowPolicy
from budwood_flow_rl.reductions import divisor, joint
from budwood_flow_rl.regularisers import bc, frozen, w2

SHAPE = {"H": 4, "D": 5, "C": 3, "De": 2}


@pytest.fixture
def field():
    torch.manual_seed(0)
    return RectifiedFlow(5, 2, 3, hidden=(16, 16, 16))


@pytest.fixture
def kernel(field):
    return NoisyEuler(4, NoiseNet(field.feat_dim, 2, 3, (16,), 0.1, 0.24))


# ---- T13 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hybrid", "support", "expected"),
    [
        (False, "all", {"sum": 1, "mean_k": 9, "mean_n": 9 * 20}),
        (False, "executed", {"sum": 1, "mean_k": 9, "mean_n": 9 * 6}),
        (True, "all", {"sum": 1, "mean_k": 1, "mean_n": 20}),
        (True, "executed", {"sum": 1, "mean_k": 1, "mean_n": 6}),
    ],
)
def test_divisors(hybrid, support, expected):
    assert {name: divisor(name, 8, hybrid, support, **SHAPE) for name in expected} == expected


def test_joint_sums_what_is_executed_or_everything():
    elements = torch.arange(40.0).reshape(2, 4, 5)
    assert joint(elements, "all", (3, 2)).tolist() == [sum(range(20)), sum(range(20, 40))]
    executed = [sum(base + 5 * c + d for c in range(3) for d in range(2)) for base in (0, 20)]
    assert joint(elements, "executed", (3, 2)).tolist() == executed


def test_the_sum_is_n_times_the_mean(field, kernel):
    o = torch.randn(8, 5)
    score = log_prob(field, kernel, rollout(field, kernel, o), o)
    n = divisor("mean_n", 4, False, "all", H=2, D=3, C=2, De=3)
    assert n == 5 * 2 * 3
    # every term of the mean on its own: four steps and the start, over the six elements
    assert torch.allclose(joint(score.elements, "all", (2, 3)) / n, score.elements.mean((1, 2)) / 5)


def test_a_clip_of_the_mean_is_a_clip_of_the_joint_log_ratio_at_n_log():
    n, eps = 60.0, 0.01
    old = torch.randn(5, dtype=torch.float64)
    low, high = n * math.log(1 - eps), n * math.log(1 + eps)
    for inside, gradient in ((1 - 1e-9, True), (1 + 1e-9, False)):
        for bound, advantage in ((high, 1.0), (low, -1.0)):
            new = (old + bound * inside).requires_grad_()
            loss, metrics = ppo_loss(new, old, torch.full_like(old, advantage), eps, eps, divisor=n)
            loss.backward()
            assert bool((new.grad.abs() > 0).all()) == gradient
            assert metrics["clip_fraction"] == (0.0 if gradient else 1.0)
            assert metrics["joint_kl"].item() == pytest.approx(math.exp(bound) - 1 - bound, rel=1e-6)


# ---- loss ----------------------------------------------------------------------------------------------------------------


def test_unclipped_loss_has_the_gradient_of_the_divided_score():
    old, advantages = torch.randn(7), torch.randn(7)
    new = old.clone().requires_grad_()
    loss, metrics = ppo_loss(new, old, advantages, 0.2, 0.2, divisor=10)
    loss.backward()
    assert torch.allclose(new.grad, -advantages / 10 / 7)
    assert {name: metrics[name].item() for name in ("joint_kl", "clip_fraction", "ratio_worst", "ratio_error")} == {
        "joint_kl": 0,
        "clip_fraction": 0,
        "ratio_worst": 0,
        "ratio_error": 0,
    }


def test_metrics_in_figures():
    log_ratio = torch.tensor([0.0, 0.2, -0.4, 0.1])
    loss, metrics = ppo_loss(log_ratio, torch.zeros(4), torch.tensor([1.0, 1.0, 1.0, -1.0]), 0.1, 0.15, divisor=2)
    r = (log_ratio / 2).exp()
    clipped_to = torch.tensor([1.0, r[1], 0.9, r[3]])  # a ratio of 0.82 below the range is kept: minimum of both
    assert (r[1] < 1.15).item()
    assert loss.item() == pytest.approx(-(1 + r[1] + r[2] - r[3]).item() / 4, abs=1e-6)
    assert (r[2] < clipped_to[2]).item()
    assert metrics["clip_fraction"].item() == 0.25
    assert metrics["ratio_worst"].item() == pytest.approx(1 - r[2].item(), abs=1e-6)
    assert metrics["joint_ratio_worst"].item() == pytest.approx(1 - math.exp(-0.4), abs=1e-6)
    kl = sum(math.exp(x) - 1 - x for x in (0.0, 0.2, -0.4, 0.1)) / 4
    assert metrics["joint_kl"].item() == pytest.approx(kl, abs=1e-6)


def test_dual_clip_bounds_what_a_negative_advantage_can_cost():
    new = torch.tensor([2.0, 2.0, 0.5], requires_grad=True)
    advantages = torch.tensor([-1.0, 1.0, -1.0])
    plain, _ = ppo_loss(new, torch.zeros(3), advantages, 0.2, 0.2)
    assert plain.item() == pytest.approx((math.exp(2) - 1.2 + math.exp(0.5)) / 3, abs=1e-5)
    dual, metrics = ppo_loss(new, torch.zeros(3), advantages, 0.2, 0.2, dual=3.0)
    assert dual.item() == pytest.approx((3 - 1.2 + math.exp(0.5)) / 3, abs=1e-5)
    assert metrics["dual_fraction"].item() == pytest.approx(1 / 3)
    dual.backward()
    assert new.grad[0] == 0
    assert new.grad[2] > 0


def test_clamped_log_probabilities_lose_their_gradient_and_are_counted_either_way():
    new = torch.tensor([-30.0, 5.0], requires_grad=True)
    old = torch.tensor([-29.0, 5.0])
    for clamp, moved in ((False, True), (True, False)):
        new.grad = None
        loss, metrics = ppo_loss(new, old, torch.ones(2), 0.2, 0.2, divisor=10, clamp=clamp)
        loss.backward()
        assert bool(new.grad[0] != 0) == moved
        assert new.grad[1] != 0
        assert metrics["log_prob_beyond_1"] == 0.5


def test_a_log_probability_that_is_not_finite_stops_with_one_sentence():
    with pytest.raises(ContributionError, match="50% of 4 chains is not finite"):
        ppo_loss(torch.tensor([0.0, math.nan, math.inf, 1.0]), torch.zeros(4), torch.ones(4), 0.2, 0.2)


# ---- regularisers --------------------------------------------------------------------------------------------------------


def test_w2_is_the_squared_distance_of_the_two_samplers_and_pulls_back(field):
    o, x0, kernel = torch.randn(32, 5), torch.randn(32, 2, 3), FlowSDE(4, 0.5)
    old = frozen(field)
    assert w2(field, old, o, x0, kernel).item() == 0
    for parameter in field.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    moved = w2(field, old, o, x0, kernel)
    distance = (sample(field, o, 4, x0) - sample(old, o, 4, x0)).flatten(1).norm(dim=1)
    assert moved.item() == pytest.approx(distance.square().mean().item(), rel=1e-5)
    moved.backward()
    assert all(parameter.grad is None for parameter in old.parameters())
    for parameter in field.parameters():
        parameter.data -= 1e-3 * parameter.grad
    assert w2(field, old, o, x0, kernel) < moved


def test_w2_of_shifted_gaussians_is_exact():
    """Constant velocities c and c': both samplers give N(c, I), and W2^2 = ||c - c'||^2."""

    class Constant(torch.nn.Module):
        horizon, action_dim = 1, 2

        def __init__(self, c):
            super().__init__()
            self.c = torch.nn.Parameter(torch.tensor(c))

        def velocity(self, x, s, o, h=None):
            return self.c.expand(len(x), 1, 2), s[:, None]

    one, other = Constant([0.5, -1.0]), Constant([0.1, 1.0])
    assert w2(one, other, torch.zeros(9, 1), torch.randn(9, 1, 2), FlowCPS(3, 0.5)).item() == pytest.approx(
        0.4**2 + 4, rel=1e-5
    )


def test_w2_of_a_diffusion_is_the_distance_of_what_ddim_samples():
    torch.manual_seed(0)
    o, x0, kernel = torch.randn(32, 5), torch.randn(32, 2, 3), DDPM(6)
    field = Diffusion(5, 2, 3, hidden=(16, 16, 16), steps=6)
    old = frozen(field)
    for parameter in field.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    found = w2(field, old, o, x0, kernel)
    distance = (denoised(field, o, 6, x0) - denoised(old, o, 6, x0)).flatten(1).norm(dim=1)
    assert found.item() == pytest.approx(distance.square().mean().item(), rel=1e-5)
    found.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in field.parameters() if parameter.grad is not None)
    assert any(parameter.grad is not None for parameter in field.parameters())


def test_w2_clips_means_as_the_policy_does(field, kernel):
    o, x0, old = torch.randn(32, 5), 3 * torch.randn(32, 2, 3), frozen(field)
    for parameter in field.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    clipping = NoisyEuler(4, kernel.noise, clip_mean=0.5)
    ends = [rollout(one, clipping, o, x0, noise_free=True).actions for one in (field, old)]
    expected = (ends[0] - ends[1]).square().flatten(1).sum(1).mean().item()
    assert w2(field, old, o, x0, clipping).item() == pytest.approx(expected, rel=1e-5)


def test_the_w2_term_draws_noise_and_zeros_only_on_demand(field, kernel, monkeypatch):
    o, drawn = torch.randn(6, 5), []
    monkeypatch.setattr("budwood_flow_rl.regularisers.w2", lambda *args: drawn.append(args[3]) or torch.tensor(0.0))
    policy = FlowPolicy(field, kernel, Critic(5, (8, 8, 8), 0.0), frozen=frozen(field))
    inputs = LossInputs(obs=o, log_prob=torch.zeros(6), policy=SimpleNamespace(network=policy))
    for zero in (False, True):
        W2(zero)(inputs)
    assert drawn[0].shape == drawn[1].shape == (6, 2, 3)
    assert drawn[0].std() > 0.5
    assert (drawn[1] == 0).all()


@pytest.mark.parametrize("hybrid", [False, True])
def test_bc_is_smallest_where_the_policy_is_the_frozen_one(field, hybrid):
    o, old, kernel = torch.randn(512, 5), frozen(field), FlowSDE(4, 0.5, hybrid=hybrid)

    def loss() -> torch.Tensor:
        return bc(field, old, kernel, o, torch.Generator().manual_seed(0))

    here = loss()
    chain = rollout(old, kernel, o, generator=torch.Generator().manual_seed(0))
    elements = 2 * 3 * (1 if hybrid else 5)
    assert here.item() == pytest.approx(-(chain.log_prob.elements.sum() / 512 / elements).item(), rel=1e-5)
    for parameter in field.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    away = loss()
    assert away > here
    away.backward()
    for parameter in field.parameters():
        parameter.data -= 0.02 * parameter.grad
    assert loss() < away

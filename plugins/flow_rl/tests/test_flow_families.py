"""Flow families: shapes, training targets, step sizes, and what shortcut models promise (T14)."""

from __future__ import annotations

import json
import math

import pytest
import torch
from scipy import stats
from torch import nn

from budwood.api import BindingError, ConfigError
from budwood_flow_rl.families import FAMILIES, RectifiedFlow, sample, sample_times
from budwood_flow_rl.shortcut import DELTA, Shortcut, two_half_steps

CPU = torch.device("cpu")


def spied(field):
    """Remembers what the field is asked at."""
    asked = []
    inner = field.velocity

    def velocity(x, s, o, h=None):
        v, feat = inner(x, s, o, h)
        asked.append((x, s, h, v))
        return v, feat

    field.velocity = velocity
    return asked


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sampler_asks_at_each_step_and_never_at_the_data(family):
    field = FAMILIES[family](5, 2, 3, hidden=(8, 8, 8))
    asked = spied(field)
    out = sample(field, torch.randn(4, 5), 4, torch.randn(4, 2, 3))
    assert out.shape == (4, 2, 3)
    assert [s.tolist() for _, s, _, _ in asked] == [[k / 4] * 4 for k in range(4)]
    assert all(h.tolist() == [0.25] * 4 for _, _, h, _ in asked)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_field_is_rebuilt_from_its_arguments(family):
    field = FAMILIES[family](5, 2, 3, hidden=(8, 8, 8), activation="mish", time_dim=8)
    again = FAMILIES[family](**json.loads(json.dumps(field.arguments())))
    again.load_state_dict(field.state_dict())
    o, x0 = torch.randn(4, 5), torch.randn(4, 2, 3)
    assert torch.equal(sample(again, o, 4, x0), sample(field, o, 4, x0))
    assert again.arguments() == field.arguments()
    assert FAMILIES[family].name == family


def test_the_network_is_that_of_the_paper():
    field = RectifiedFlow(11, 4, 3, hidden=(512, 512, 512))
    shapes = {name: tuple(value.shape) for name, value in field.named_parameters()}
    assert shapes["net.first.weight"] == (512, 12 + 16 + 11)
    assert shapes["net.last.weight"] == (12, 512)
    assert [shape for name, shape in shapes.items() if "blocks" in name and "weight" in name] == [(512, 512)] * 2
    assert [shape for name, shape in shapes.items() if "time" in name and "weight" in name] == [(32, 16), (16, 32)]
    v, feat = field.velocity(torch.randn(2, 4, 3), torch.rand(2), torch.randn(2, 11))
    assert v.shape == (2, 4, 3)
    assert feat.shape == (2, field.feat_dim) == (2, 27)
    zero = RectifiedFlow(11, 4, 3, hidden=(8, 8, 8))
    for block in zero.net.blocks:
        nn.init.zeros_(block.second.weight)
        nn.init.zeros_(block.second.bias)
    x = torch.randn(2, 39)
    assert torch.equal(zero.net(x), zero.net.last(zero.net.first(x))), "blocks add to what goes past them"
    for hidden in ((8, 8), (8, 16, 8)):
        with pytest.raises(ConfigError, match="odd number of layers of one width"):
            RectifiedFlow(11, 4, 3, hidden=hidden)


def test_a_history_of_observations_is_flattened_and_another_size_is_refused():
    field = RectifiedFlow(6, 2, 3, hidden=(8, 8, 8))
    x, s, history = torch.randn(4, 2, 3), torch.rand(4), torch.randn(4, 2, 3)
    assert torch.equal(field.velocity(x, s, history)[0], field.velocity(x, s, history.flatten(1))[0])
    with pytest.raises(BindingError, match="observations of 6 numbers and was given 5"):
        field.velocity(x, s, torch.randn(4, 5))


# ---- 2.1 ------------------------------------------------------------------------------------------------------------------


def test_rectified_flow_learns_the_straight_path():
    field, actions, o = RectifiedFlow(5, 2, 3, hidden=(8, 8, 8)), torch.randn(64, 2, 3), torch.randn(64, 5)
    asked = spied(field)
    loss = field.pretrain_loss(actions, o, torch.Generator().manual_seed(3))
    (x, s, h, v) = asked[0]
    assert h is None
    assert ((s >= 0) & (s < 1)).all()
    e = (x - s[:, None, None] * actions) / (1 - s)[:, None, None]
    assert e.mean().abs() < 0.2
    assert e.std().item() == pytest.approx(1, abs=0.15)
    assert loss.item() == pytest.approx((v - (actions - e)).square().mean().item(), rel=1e-3)
    again = field.pretrain_loss(actions, o, torch.Generator().manual_seed(3))
    assert torch.equal(loss, again)


@pytest.mark.parametrize(
    ("sampling", "distribution"),
    [
        ("uniform", stats.uniform()),
        ("logit_normal", stats.johnsonsu),
        ("beta", stats.beta(1.0, 1.5, scale=1.0)),
    ],
)
def test_training_times(sampling, distribution):
    s = sample_times(20_000, sampling, torch.Generator().manual_seed(0), CPU)
    assert ((s >= 0) & (s < 1)).all()
    if sampling == "uniform":
        values, reference = s, stats.uniform()
    elif sampling == "logit_normal":
        values, reference = s.logit(), stats.norm()
    else:
        values, reference = 1 - s / 0.999, stats.beta(1.5, 1)
    assert stats.kstest(values.double().numpy(), reference.cdf).pvalue > 1e-3


def test_rectified_flow_trains_to_its_data():
    torch.manual_seed(0)
    field = RectifiedFlow(1, 1, 2, hidden=(32, 32, 32))
    optimizer = torch.optim.Adam(field.parameters(), 3e-3)
    for _ in range(400):
        o = torch.rand(128, 1) * 2 - 1
        actions = torch.stack([o, -o], dim=-1) * 0.8 + 0.05 * torch.randn(128, 1, 2)
        loss = field.pretrain_loss(actions, o)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    o = torch.tensor([[-0.5], [0.5]]).repeat_interleave(200, 0)
    with torch.no_grad():
        out = sample(field, o, 8, torch.randn(400, 1, 2))
    expected = torch.stack([o, -o], dim=-1) * 0.8
    assert (out - expected).square().mean().sqrt() < 0.2


# ---- 2.2 ------------------------------------------------------------------------------------------------------------------


def test_step_sizes_are_powers_of_two_down_to_the_smallest_step():
    field = Shortcut(5, 2, 3, hidden=(8, 8, 8), max_steps=16)
    h, s = field.step_sizes(20_000, torch.Generator().manual_seed(0), CPU)
    exponents, counts = (-h.log2()).round().unique(return_counts=True)
    assert exponents.tolist() == [0, 1, 2, 3], "h/2 is at least 1/16"
    assert (counts - 5000).abs().max() < 4 * math.sqrt(20_000 * 0.25 * 0.75)
    assert torch.equal((s / h).round() * h, s)
    assert (s + h <= 1).all()
    eighth = (s[h == 1 / 8] * 8).long().bincount(minlength=8)
    assert (eighth > 500).all(), "every multiple of h below 1"

    reference = Shortcut(5, 2, 3, hidden=(8, 8, 8), max_steps=20, reference_exponents=True)
    h, s = reference.step_sizes(20_000, torch.Generator().manual_seed(0), CPU)
    assert (-h.log2()).round().unique().tolist() == list(range(19))
    assert (s + h <= 1).all()
    with pytest.raises(ConfigError, match="halves down to 1 and 20 does not"):
        Shortcut(5, 2, 3, max_steps=20)


def test_a_quarter_of_the_batch_learns_consistency_and_the_rest_the_flow():
    torch.manual_seed(0)
    field, actions, o = Shortcut(5, 2, 3, hidden=(8, 8, 8)), torch.randn(64, 2, 3), torch.randn(64, 5)
    asked = spied(field)
    loss = field.pretrain_loss(actions, o, torch.Generator().manual_seed(1))
    (x1, s1, h1, v1), (x2, s2, h2, v2), (x, s, h, v) = asked
    assert len(x1) == len(x2) == 16
    assert (h[:16] > 0).all()
    assert (h[16:] == 0).all()
    assert torch.equal(h1, h[:16] / 2)
    assert torch.equal(h2, h1)
    assert torch.equal(s1, s[:16])
    assert torch.equal(s2, s1 + h1)
    assert torch.equal(x2, x1 + h1[:, None, None] * v1)
    at = s[:, None, None]
    e = (x - at * actions) / (1 - (1 - DELTA) * at)
    target = actions - (1 - DELTA) * e
    target[:16] = (v1 + v2) / 2
    assert not v1.requires_grad
    assert loss.item() == pytest.approx((v - target).square().mean().item(), rel=1e-3)


class Exact(nn.Module):
    """The average velocity over [s, s + h] of the flow that carries N(0, 1) to N(m, q^2)."""

    horizon = action_dim = 1
    m, q = 0.3, 0.5

    def velocity(self, x, s, o, h=None):
        at, to = s[:, None, None], (s + h)[:, None, None]
        std = [((1 - time) ** 2 + time**2 * self.q**2).sqrt() for time in (at, to)]
        arrives = self.m * to + std[1] / std[0] * (x - self.m * at)
        return (arrives - x) / h[:, None, None], s[:, None]


def test_two_half_steps_of_the_exact_average_velocity_are_one_step():
    field, x = Exact(), torch.randn(64, 1, 1, dtype=torch.float64)
    h, s = Shortcut(1, 1, 1, hidden=(8, 8, 8)).step_sizes(64, None, CPU)
    h, s = h.double(), s.double()
    target = two_half_steps(field, x, s, h, None)
    assert torch.allclose(target, field.velocity(x, s, None, h)[0], rtol=0, atol=1e-12)
    wrong = two_half_steps(field, x, s, h / 2, None)
    assert (wrong - field.velocity(x, s, None, h)[0]).abs().max() > 1e-2


def test_straight_data_leave_no_loss():
    """a = e + c: the velocity is c everywhere, one step of any size lands right."""

    class Straight(Shortcut):
        c = 0.7

        def velocity(self, x, s, o, h=None):
            return torch.full_like(x, self.c), s[:, None]

    field = Straight(1, 1, 1, hidden=(8, 8, 8), consistent=1.0)
    x, s, h = torch.randn(9, 1, 1), torch.zeros(9), torch.ones(9)
    assert torch.equal(two_half_steps(field, x, s, h, None), torch.full((9, 1, 1), 0.7))
    assert torch.allclose(sample(field, torch.zeros(9, 1), 1, x), sample(field, torch.zeros(9, 1), 8, x), atol=1e-6)
    assert field.pretrain_loss(torch.randn(64, 1, 1), torch.zeros(64, 1)) == 0


def test_a_shortcut_model_trained_on_two_modes_steps_once_as_well_as_often():
    torch.manual_seed(0)
    field = Shortcut(1, 1, 1, hidden=(64, 64, 64))
    optimizer = torch.optim.Adam(field.parameters(), 2e-3)
    for _ in range(1500):
        o = torch.zeros(256, 1)
        actions = 0.8 * torch.randint(0, 2, (256, 1, 1)).mul(2).sub(1) + 0.02 * torch.randn(256, 1, 1)
        loss = field.pretrain_loss(actions, o)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        x0, o = torch.randn(2000, 1, 1), torch.zeros(2000, 1)
        far = {K: (sample(field, o, K, x0).abs() - 0.8).abs().mean().item() for K in (1, 8)}
    assert far[8] < 0.15
    assert far[1] < 0.3, "a rectified flow's single step lands on the mean, 0.8 away"

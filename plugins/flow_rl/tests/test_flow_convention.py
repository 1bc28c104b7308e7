"""Which way time runs: known fields in every convention, a trained network, and what cannot be told."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from budwood.api import BindingError
from budwood_flow_rl.convention import check_convention, measure
from budwood_flow_rl.families import RectifiedFlow, Shortcut, sample


class Known(nn.Module):
    """The exact velocity for actions N(m(o), q^2), in data time unless said otherwise."""

    horizon, action_dim = 2, 3

    def __init__(self, q: float = 0.2, flip_sign: bool = False, flip_time: bool = False) -> None:
        super().__init__()
        self.q, self.flip_sign, self.flip_time = q, flip_sign, flip_time

    def velocity(self, x, s, o, h=None):
        s = (1 - s if self.flip_time else s)[:, None, None]
        m = o[:, :1, None].expand_as(x)
        variance = s**2 * self.q**2 + (1 - s) ** 2
        v = m + (s * self.q**2 - (1 - s)) / variance * (x - s * m)
        return (-v if self.flip_sign else v), s[:, 0]


O = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))  # noqa: E741


def check(field, o=O):
    return check_convention(field, o, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("q", [0.02, 0.2, 0.7, 1.0, 1.1])
def test_a_field_in_data_time_reaches_its_data_and_passes(q):
    assert check(Known(q)) == "data time"
    x0 = torch.randn(4000, 2, 3, generator=torch.Generator().manual_seed(2))
    out = sample(Known(q), O[:1].expand(4000, 5), 64, x0)
    assert out.mean().item() == pytest.approx(O[0, 0].item(), abs=0.03)
    assert out.std().item() == pytest.approx(q, abs=0.03)


@pytest.mark.parametrize("q", [0.02, 0.2, 0.7])
@pytest.mark.parametrize(("sign", "time"), [(True, False), (False, True), (True, True)])
def test_every_other_convention_is_refused(q, sign, time):
    with pytest.raises(BindingError, match="wrong direction of time") as caught:
        check(Known(q, sign, time))
    assert "t = 1 - s and return minus its velocity" in str(caught.value)


def test_half_a_mistake_is_found_for_any_data_and_a_whole_one_only_for_data_narrower_than_noise():
    for sign, time in ((True, False), (False, True)):
        with pytest.raises(BindingError):
            check(Known(1.0, sign, time))
    assert check(Known(1.0, True, True)) == "data time", "what the docstring says it cannot tell"


@pytest.mark.parametrize("family", [RectifiedFlow, Shortcut])
def test_an_untrained_network_is_undetermined_and_a_trained_one_is_not(family):
    torch.manual_seed(0)
    field = family(5, 2, 3, hidden=(64, 64, 64))
    assert check(field) == "undetermined"
    optimizer = torch.optim.Adam(field.parameters(), 2e-3)
    for _ in range(400):
        o = torch.randn(128, 5)
        actions = o[:, 0].tanh()[:, None, None] * 0.8 + 0.1 * torch.randn(128, 2, 3)
        optimizer.zero_grad()
        field.pretrain_loss(actions, o).backward()
        optimizer.step()
    assert check(field) == "data time"

    class Converted(nn.Module):
        horizon, action_dim = 2, 3

        def __init__(self, sign: bool, time: bool) -> None:
            super().__init__()
            self.sign, self.time = sign, time

        def velocity(self, x, s, o, h=None):
            v, feat = field.velocity(x, 1 - s if self.time else s, o, h)
            return (-v if self.sign else v), feat

    for sign, time in ((True, False), (False, True), (True, True)):
        with pytest.raises(BindingError):
            check(Converted(sign, time))


def test_evidence_in_figures():
    right = measure(Known(0.2), O, draws=2000, steps=32, generator=torch.Generator().manual_seed(0))
    assert right.start == pytest.approx(0, abs=1e-6), "v = m - x at s = 0"
    assert right.start_reversed == pytest.approx(2, abs=0.01)
    assert right.end == pytest.approx(2, abs=0.01), "v = x at s = 1"
    assert right.end_reversed == pytest.approx(0, abs=1e-6)
    assert right.spread == pytest.approx(0.2, abs=0.06)

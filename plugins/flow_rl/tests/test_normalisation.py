"""Min-max scaling: its ends, its inverse, and statistics that are degenerate."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from budwood.api import BudwoodError
from budwood_flow_rl.demonstrations import DemonstrationError
from budwood_flow_rl.normalisation import STRAY, MinMax, Normalisation


def test_least_and_largest_become_minus_one_and_one_and_come_back() -> None:
    rows = np.random.default_rng(0).normal(3, [0.1, 10, 1000], size=(200, 3)).astype(np.float32)
    scaling = MinMax.of(rows)
    scaled = scaling.scale(torch.from_numpy(rows))
    assert scaled.amin(0).tolist() == pytest.approx([-1] * 3, abs=1e-6)
    assert scaled.amax(0).tolist() == pytest.approx([1] * 3, abs=1e-6)
    assert np.allclose(scaling.unscale(scaled).numpy(), rows, rtol=1e-5, atol=1e-5)
    assert scaling.constant == []
    chunks = torch.from_numpy(rows).reshape(50, 4, 3)
    assert torch.equal(scaling.scale(chunks).reshape(200, 3), scaled)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.0, 1e7])
def test_a_constant_dimension_is_zero_keeps_its_unit_and_is_named(value: float) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    rows[:, 1] = value
    rows[7, 1] = np.nextafter(rows[7, 1], np.float32(np.inf))  # rounding, which a division would blow up
    scaling = MinMax.of(rows)
    assert scaling.constant == [1]
    scaled = scaling.scale(torch.from_numpy(rows))
    assert scaled[:, 1].abs().max() <= 1e-6 * max(abs(value), 1)
    assert scaling.unscale(scaled)[:, 1].tolist() == pytest.approx([value] * 50, rel=1e-6, abs=1e-6)
    strayed = scaling.scale(torch.tensor([0.0, value + 2.0]))
    assert strayed[1].item() == pytest.approx(2.0, abs=1e-6)


def test_a_small_range_that_is_data_is_scaled() -> None:
    rows = np.array([[0.0], [1e-4]], np.float32)
    assert MinMax.of(rows).constant == []
    assert MinMax.of(rows).scale(torch.from_numpy(rows)).flatten().tolist() == pytest.approx([-1, 1])


def test_the_largest_floats_do_not_overflow() -> None:
    rows = np.array([[-3e38], [3e38]], np.float32)
    assert MinMax.of(rows).scale(torch.from_numpy(rows)).flatten().tolist() == pytest.approx([-1, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_statistics_of_what_is_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(DemonstrationError, match="NaN or infinities"):
        MinMax.of(np.array([[0.0], [bad]], np.float32))
    with pytest.raises(DemonstrationError, match="there are none"):
        MinMax.of(np.zeros((0, 2), np.float32))
    with pytest.raises(BudwoodError, match="finite low <= high"):
        MinMax(np.array([0.0]), np.array([bad]))
    with pytest.raises(BudwoodError, match="finite low <= high"):
        MinMax(np.array([1.0]), np.array([0.0]))


def test_json_gives_back_the_same_floats() -> None:
    rng = np.random.default_rng(0)
    made = Normalisation(MinMax.of(rng.normal(size=(9, 4))), MinMax.of(rng.normal(0, 1e-20, size=(9, 2)) + 0.1))
    back = Normalisation.from_json(json.loads(json.dumps(made.as_json())))
    for name, value in made.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    assert back.notes == made.notes
    assert made.notes == [
        "constant in the demonstrations: action dimensions 0, 1; scaled to 0, and what strays from the constant keeps its unit"
    ]


def test_a_dimension_that_hardly_moved_in_the_data_does_not_blow_up_when_it_does() -> None:
    """A switch of Franka Kitchen that no demonstration touched moves by 1e-5 there, and by 0.7 when it is hit."""
    rows = np.stack([np.linspace(0, 1, 50), np.linspace(0, 1e-5, 50)], axis=1).astype(np.float32)
    scaled = MinMax.of(rows).scale(torch.tensor([[0.5, 0.7], [1.2, -0.7]]))
    assert scaled[:, 1].tolist() == [STRAY, -STRAY]
    assert scaled[:, 0].tolist() == pytest.approx([0.0, 1.4], abs=1e-6)

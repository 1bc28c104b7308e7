"""Parametrisations of the weights: what phi means, how it is bounded, drawn and compared, and its derivative."""

from __future__ import annotations

import numpy as np
import pytest

from budwood.api import TermColumn
from budwood_reward_shaping.ascent import Adam, Normalised
from budwood_reward_shaping.combination import WeightedTerms
from budwood_reward_shaping.state_weights import HIDDEN, PROBES, StateWeightedTerms, StateWeights, flatten
from budwood_reward_shaping.terms import InfoTerm
from budwood_reward_shaping.weights import SimplexWeights, StaticWeights

LOW, HIGH = 0.1, 10.0


@pytest.fixture
def state():
    rng = np.random.default_rng(0)
    space = StateWeights(LOW, HIGH, 3)
    space.freeze(rng.normal([5.0, 0.0, -2.0, 1.0], [3.0, 0.1, 1.0, 0.0], (300, 4)), rng)
    return space


def spaces(state):
    return [StaticWeights(LOW, HIGH, False), StaticWeights(LOW, HIGH, True), SimplexWeights(LOW, HIGH), state]


def test_every_space_starts_with_equal_weights(state):
    for space in spaces(state):
        np.testing.assert_allclose(space.weights(space.start(np.ones(3))), 1.0, rtol=1e-14)


def test_simplex_weights_sum_to_how_many_there_are():
    space, rng = SimplexWeights(LOW, HIGH), np.random.default_rng(0)
    for phi in space.draw(rng, 50, 4):
        assert space.weights(phi).sum() == pytest.approx(4)
    np.testing.assert_allclose(space.weights(space.start(np.array([2.0, 4.0, 6.0]))), [0.5, 1.0, 1.5])
    far = space.weights(np.array([100.0, -100.0]))
    assert far[0] / far[1] == pytest.approx(HIGH / LOW)


def test_simplex_weights_are_compared_by_their_ratios():
    space, phi = SimplexWeights(LOW, HIGH), np.array([0.3, -0.2, 1.0])
    np.testing.assert_allclose(space.coordinates(phi), space.coordinates(phi + 0.7), atol=1e-12)
    np.testing.assert_allclose(space.weights(phi), space.weights(phi + 0.7))


@pytest.mark.parametrize("which", range(4))
def test_pullback_is_the_slope_of_the_weighted_sum(state, which):
    rng = np.random.default_rng(which)
    space = spaces(state)[which]
    adjoint, terms, scales = rng.normal(size=(6, 2)), rng.normal(size=(6, 2, 3)), np.array([1.0, 0.2, 3.0])
    obs = rng.normal([5.0, 0.0, -2.0, 1.0], 2.0, (6, 2, 4))
    phi = space.start(np.array([1.0, 1.2, 0.8]))
    phi = phi + 0.4 * space.noise(rng, 1, len(phi))[0]

    def weighted(phi: np.ndarray) -> float:
        weights = space(phi, obs.reshape(-1, 4)).reshape(6, 2, 3) if space.needs_obs else space.weights(phi)
        return float((adjoint * (weights * scales * terms).sum(-1)).sum())

    found = space.pullback(phi, scales, adjoint, terms, obs)
    for k in rng.choice(len(phi), min(len(phi), 40), replace=False):
        move = np.zeros_like(phi)
        move[k] = 1e-5
        slope = (weighted(phi + move) - weighted(phi - move)) / 2e-5
        assert found[k] == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("which", range(4))
def test_draws_cover_the_bounds_and_no_more(state, which):
    space = spaces(state)[which]
    phis = space.draw(np.random.default_rng(0), 200, len(space.start(np.ones(3))))
    weights = np.stack([space.weights(phi) for phi in phis])
    ratios = weights[:, 0] / weights[:, 1]
    assert ratios.max() <= HIGH / LOW * (1 + 1e-9)
    assert (ratios > 3).mean() > 0.1 < (ratios < 1 / 3).mean()
    assert abs(np.log(ratios).mean()) < 0.35


@pytest.mark.parametrize("which", range(4))
def test_a_sweep_covers_every_part_of_the_cube(state, which):
    space = spaces(state)[which]
    corners = [space.weights(space.sweep(np.array(c))) for c in ([0.99, 0.01, 0.5], [0.01, 0.99, 0.5])]
    assert corners[0][0] != pytest.approx(corners[1][0], rel=0.5)
    if which in (0, 1):
        np.testing.assert_allclose(space.weights(space.sweep(np.array([0.0, 0.5, 1.0]))), [LOW, 1.0, HIGH])
    spread = space.spread(space.sweep(np.array([0.2, 0.4, 0.9])))
    assert spread is None or spread.max() < 1e-12, "a sweep has the same weights in every state"


def test_a_sweep_of_the_simplex_is_uniform_but_for_its_bounds():
    space = SimplexWeights(1e-6, 1e6)
    points = np.random.default_rng(0).random((4000, 3))
    shares = np.stack([space.weights(space.sweep(point)) for point in points]) / 3
    np.testing.assert_allclose(shares.mean(axis=0), 1 / 3, atol=0.02)
    np.testing.assert_allclose(shares.var(axis=0), 1 / 18, atol=0.005)  # of a Dirichlet(1, 1, 1)


# ---- weights of the state -------------------------------------------------------------------------------------------


def test_the_network_starts_as_a_constant_whatever_the_state(state):
    phi = state.start(np.array([1.0, 2.0, 0.5]))
    weights = state(phi, np.random.default_rng(1).normal(size=(20, 4)) * 100)
    assert len(phi) == (4 + 1) * HIDDEN + (HIDDEN + 1) * HIDDEN + (HIDDEN + 1) * 3
    np.testing.assert_allclose(weights, np.broadcast_to(3 * np.array([1.0, 2.0, 0.5]) / 3.5, (20, 3)))
    assert (weights == weights[0]).all()


def test_network_weights_are_bounded_sum_to_n_and_differ_between_states(state):
    rng = np.random.default_rng(2)
    obs = rng.normal([5.0, 0.0, -2.0, 1.0], [3.0, 0.1, 1.0, 0.1], (100, 4))
    for phi in [*state.draw(rng, 5, 0), 50 * state.draw(rng, 1, 0)[0]]:
        weights = state(phi, obs)
        np.testing.assert_allclose(weights.sum(axis=1), 3)
        assert (weights.max(axis=1) / weights.min(axis=1)).max() <= HIGH / LOW * (1 + 1e-9)
        assert weights.std(axis=0).min() > 0.01
        np.testing.assert_allclose(state.weights(phi), state._network(phi, state.probes).mean(axis=0))
        assert state.spread(phi).min() > 0.01


def test_what_a_state_gets_does_not_depend_on_the_states_beside_it(state):
    """Bit for bit: rewards that are recomputed under unchanged weights must be the same."""
    rng = np.random.default_rng(3)
    phi, obs = state.draw(rng, 1, 0)[0], rng.normal(size=(501, 4))
    whole = state(phi, obs)
    for size in (1, 2, 7, 64):
        parts = np.concatenate([state(phi, obs[i : i + size]) for i in range(0, 501, size)])
        np.testing.assert_array_equal(whole, parts)


def test_the_normaliser_is_frozen_and_constants_do_no_harm(state):
    np.testing.assert_allclose(state._normalised(np.array([[5.0, 0.0, -2.0, 1.0]])), 0.0, atol=0.3)
    assert np.isfinite(state._normalised(np.full((1, 4), 1e9))).all()
    assert state.probes.shape == (PROBES, 4)
    few = StateWeights(LOW, HIGH, 2)
    few.freeze(np.zeros((5, 1)), np.random.default_rng(0))
    assert few.probes.shape == (PROBES, 1)


def test_distances_are_between_functions_not_parameters(state):
    rng = np.random.default_rng(4)
    phi = state.draw(rng, 1, 0)[0]
    same = phi.copy()
    same[-3:] += 1.7  # the softmax does not see it
    other = phi.copy()
    other[-3] += 1.0
    z = state.coordinates(np.stack([phi, same, other]))
    np.testing.assert_allclose(z[0], z[1], atol=1e-12)
    # log-weights of one term rise by up to 1 against the others: centred (2, -1, -1) / 3, in units of half the box
    assert 0 < np.linalg.norm(z[0] - z[2]) <= np.sqrt(6) / 3 * 2 / np.log(HIGH / LOW) + 1e-9


def test_observations_of_any_kind_become_rows():
    assert flatten(np.zeros((5, 2, 3))).shape == (5, 6)
    assert flatten(np.arange(4)).shape == (4, 1)
    both = flatten({"b": np.ones((2, 1)), "a": np.zeros((2, 2))})
    np.testing.assert_array_equal(both, [[0, 0, 1], [0, 0, 1]])


COLUMNS = [TermColumn(name, 0.25) for name in ("env.reward", "reward_shaping.task", "reward_shaping.a", "x.bonus")]
COLUMNS.insert(3, TermColumn("reward_shaping.b", 1.0))


def test_rewards_under_weights_of_the_state():
    space = StateWeights(LOW, HIGH, 2)
    terms = [InfoTerm("b", "b"), InfoTerm("a", "a")]
    combination = StateWeightedTerms(terms, np.ones(2), np.array([1.0, 10.0]), 0.5, space)
    combination.bind(COLUMNS)
    rng = np.random.default_rng(5)
    matrix, obs = rng.normal(size=(9, 5)), rng.normal(size=(9, 4))
    fixed = WeightedTerms(terms, np.ones(2), np.array([1.0, 10.0]), 0.5)
    fixed.bind(COLUMNS)
    np.testing.assert_array_equal(combination(matrix, obs), fixed(matrix, None))
    space.freeze(obs, rng)
    combination.follow(space, space.draw(rng, 1, 0)[0])
    w = space(combination.phi, obs)
    expected = w[:, 0] * matrix[:, 3] + 10 * w[:, 1] * matrix[:, 2] + 0.5 * matrix[:, 1] + 0.25 * matrix[:, 4]
    np.testing.assert_allclose(combination(matrix, obs), expected)
    assert combination.version == 1
    again = StateWeightedTerms(terms, np.ones(2), np.array([1.0, 10.0]), 0.5, StateWeights(LOW, HIGH, 2))
    again.bind(COLUMNS)
    again.load_state_dict(combination.state_dict())
    np.testing.assert_array_equal(again(matrix, obs), combination(matrix, obs))


# ---- steps ----------------------------------------------------------------------------------------------------------


def test_adam_is_torchs():
    import torch

    rng = np.random.default_rng(6)
    ours, phi = Adam(0.01), np.zeros(4)
    parameter = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([parameter], lr=0.01, maximize=True)
    for step in range(8):
        gradient = rng.normal(size=4)
        if step == 4:  # as after a resume
            restored = Adam(0.01)
            restored.load_state_dict(ours.state_dict())
            ours = restored
        phi = phi + ours.move(gradient)
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    np.testing.assert_allclose(phi, parameter.detach().numpy(), rtol=1e-12)
    ours.restart()
    np.testing.assert_allclose(ours.move(np.array([3.0, -1.0])), [0.01, -0.01], rtol=1e-6)


def test_normalised_steps_have_one_length():
    assert np.linalg.norm(Normalised(0.35).move(np.array([30.0, -1.0, 2.0]))) == pytest.approx(0.35)


def test_initial_weights_of_the_simplex_that_fit_the_box_are_not_clipped():
    space = SimplexWeights(0.1, 10.0)
    for initial in ([10.0, 0.1], [2.0, 0.5, 0.5], [10.0, 0.1, 0.1]):
        given = np.array(initial)
        np.testing.assert_allclose(space.weights(space.start(given)), len(given) * given / given.sum())

"""The score-function estimate: against the exact gradient (O8), and as part of the loop."""

from __future__ import annotations

import numpy as np
import pytest

from budwood_reward_shaping.config import ExploreConfig, OuterConfig
from budwood_reward_shaping.outer import OuterLoop
from budwood_reward_shaping.probing import antithetic, score_gradient
from budwood_reward_shaping.weights import SimplexWeights, StaticWeights

TASK = np.array([0.0, 0, 1, 0, 0])
HEURISTICS = np.array([[0.0, 0.5, 1, 0.5, 0], [1, 0.2, 0, 0, 0], [0.4, 0.4, 0.4, 0.4, 0.4]])


def bandit(w: np.ndarray) -> float:
    """Performance of pi ~ exp(w . h / 0.3): O2 of the method's specification."""
    scores = np.exp(w @ HEURISTICS / 0.3)
    return float(scores @ TASK / scores.sum())


def exact(w: np.ndarray) -> np.ndarray:
    """dJ/d log w = w Cov_pi(r_task, h) / tau"""
    pi = np.exp(w @ HEURISTICS / 0.3)
    pi /= pi.sum()
    return w * ((HEURISTICS * pi) @ (TASK - pi @ TASK)) / 0.3


@pytest.mark.parametrize("w", [[0.5, 0.5, 0.5], [0.3, 0.9, 0.2]])
def test_o8_is_within_three_standard_errors_of_the_exact_gradient(w):
    w, sigma, rng = np.array(w), 0.05, np.random.default_rng(0)
    estimates = []
    for _ in range(400):
        noise = antithetic(rng.normal(size=(4, 3)))
        performance = np.array([bandit(w * np.exp(sigma * e)) for e in noise])
        estimates.append(score_gradient(noise, performance, sigma))
    mean, error = np.mean(estimates, axis=0), np.std(estimates, axis=0, ddof=1) / 20
    assert (np.abs(mean - exact(w)) <= 3 * error + 1e-12).all()
    assert (3 * error[:2] < 0.25 * np.abs(exact(w)[:2])).all(), "narrow enough to tell"


def test_at_a_bound_it_is_the_slope_of_a_performance_that_is_flat_outside():
    """Of P(bound(phi)) with P = 2 phi_0 + 3 phi_1: half of its slope where one half of the draws is clipped."""
    space = StaticWeights(0.1, 10.0, False)
    centre = np.array([np.log(10.0), 0.0])
    rng = np.random.default_rng(0)
    rounds = []
    for _ in range(4000):
        noise = antithetic(rng.normal(size=(2, 2)))
        rounds.append(score_gradient(noise, space.bound(centre + 0.3 * noise) @ [2.0, 3.0], 0.3))
    error = np.std(rounds, axis=0) / np.sqrt(len(rounds))
    np.testing.assert_array_less(np.abs(np.mean(rounds, axis=0) - [1.0, 3.0]), 3 * error)


def test_pairs_take_out_what_is_even_in_the_noise():
    """A performance that rises on both sides alike has no slope, however few the samples."""
    noise = antithetic(np.random.default_rng(0).normal(size=(1, 2)))
    np.testing.assert_allclose(score_gradient(noise, np.square(noise).sum(axis=1), 0.1), 0.0, atol=1e-12)
    linear = score_gradient(antithetic(np.eye(2)), antithetic(np.eye(2)) @ np.array([3.0, -2.0]) * 0.1, 0.1)
    np.testing.assert_allclose(linear, [1.5, -1.0])  # E[e e'] of these four is I / 2


@pytest.fixture
def make(generators):
    def build(baseline=None, outer=None, explore=None, space=None, seed=0):
        config = OuterConfig(**{"estimator": "score", "steps": 200, **(outer or {})})
        space = space or StaticWeights(0.1, 10.0, False)
        return OuterLoop(np.ones(2), space, config, ExploreConfig(**(explore or {})), baseline, generators(seed))

    return build


def test_a_round_tries_both_sides_of_every_direction_and_then_steps(make):
    loop = make()
    tried = []
    for _ in range(3):
        tried.append(loop.phi)
        decision = loop.report(0.1 + 0.05 * loop.phi[0], None)
        assert (decision.kind, decision.reset) == ("probe", True)
    tried.append(loop.phi)
    decision = loop.report(0.1 + 0.05 * loop.phi[0], None)
    np.testing.assert_allclose(tried[0], -tried[1])
    np.testing.assert_allclose(tried[2], -tried[3])
    assert decision.kind == "gradient"
    expected = score_gradient(np.array(tried) / 0.3, 0.1 + 0.05 * np.array(tried)[:, 0], 0.3)
    assert decision.grad_norm == pytest.approx(np.linalg.norm(expected))
    np.testing.assert_allclose(loop.probing.centre, 0.35 * expected / np.linalg.norm(expected))
    assert not np.allclose(loop.phi, loop.probing.centre)


def test_equal_performance_is_no_gradient_and_leads_to_a_jump(make):
    loop = make()
    decisions = [loop.report(0.0, None) for _ in range(4)]
    assert [d.kind for d in decisions] == ["probe"] * 3 + ["jump"]
    assert (decisions[-1].flat, decisions[-1].grad_norm) == (True, 0.0)
    still = make("gradient_reset")
    centre = still.probing.centre
    assert [still.report(0.0, None).kind for _ in range(4)][-1] == "hold"
    np.testing.assert_array_equal(still.probing.centre, centre)
    assert still.probing.round == 2


def test_success_holds_the_probe_and_its_mean_counts(make):
    loop = make()
    probe = loop.phi
    assert loop.report(1.0, None).kind == "hold"
    np.testing.assert_array_equal(loop.phi, probe)
    assert loop.report(0.4, None).kind == "probe"
    assert loop.probing.done == [0.7]
    loop.report(0.95, None)
    assert loop.report(0.95, None).kind == "hold"
    assert loop.solved


@pytest.mark.parametrize("space", [StaticWeights(0.1, 10.0, False), SimplexWeights(0.1, 10.0)])
def test_it_climbs(make, space):
    """Performance is best where the first weight is three times the second."""
    loop = make("gradient_reset", {"lr": 0.1, "sigma": 0.1}, space=space)

    def performance() -> float:
        first, second = loop.propose()
        return 0.5 * float(np.exp(-((np.log(first / second) - np.log(3)) ** 2)))

    for _ in range(200):
        loop.report(performance(), None)
    assert loop.best.p > 0.495


def test_stalling_is_counted_in_rounds(make):
    loop = make(outer={"stall_window": 2})
    for _ in range(8):
        loop.report(0.3, None)
    assert not loop.stalled()
    loop.report(0.3, None)
    assert loop.stalled()


def test_a_baseline_without_gradients_does_not_probe(make):
    assert make("random").probing is None
    assert make("random").report(0.0, None).kind == "jump"


def test_restored_in_the_middle_of_a_round(make):
    def performance(loop) -> float:
        return float(0.2 + 0.1 * np.tanh(loop.phi[0]))

    whole = make()
    moves = [(whole.report(performance(whole), None), whole.phi) for _ in range(12)]
    first = make()
    for _ in range(6):
        first.report(performance(first), None)
    second = make()
    second.load_state_dict(first.state_dict())
    for decision, phi in moves[6:]:
        assert second.report(performance(second), None) == decision
        np.testing.assert_array_equal(second.phi, phi)

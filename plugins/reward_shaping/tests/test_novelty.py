"""Novelty scores: what they prefer, and how evenly they spread, with the figures of the method's specification."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from budwood_reward_shaping import novelty
from budwood_reward_shaping.novelty import Seeds

SEEDS = Seeds(target=7, predictor=8)


def picks(score: str, seed: int, count: int) -> np.ndarray:
    """(count, 2) points of [-1, 1]^2 chosen one after another, each from 64 random candidates."""
    rng = np.random.default_rng(seed)
    tried = np.zeros((1, 2))
    target = int(rng.integers(2**31))
    for _ in range(count - 1):
        candidates = rng.uniform(-1, 1, (64, 2))
        chosen = novelty.SCORES[score](candidates, tried, Seeds(target, int(rng.integers(2**31)))).argmax()
        tried = np.concatenate([tried, candidates[[chosen]]])
    return tried


def gap(score: str, seeds: int, count: int) -> float:
    """Mean distance, on the unit square, of a random probe to the nearest point tried."""
    probes = np.random.default_rng(99).uniform(-1, 1, (1000, 2))
    tried = [picks(score, seed, count) for seed in range(seeds)]
    return float(np.mean([novelty.maxmin(probes, points, SEEDS).mean() for points in tried])) / 2


def test_maxmin_and_rnd_spread_better_than_uniform():
    uniform, maxmin, rnd = gap("uniform", 6, 12), gap("maxmin", 6, 12), gap("rnd", 3, 12)
    assert maxmin < rnd < uniform
    assert uniform == pytest.approx(0.143, abs=0.02)
    assert maxmin == pytest.approx(0.122, abs=0.02)


@pytest.mark.slow
def test_spread_after_forty_picks():
    uniform, maxmin, rnd = gap("uniform", 6, 40), gap("maxmin", 6, 40), gap("rnd", 6, 40)
    assert maxmin < rnd < uniform
    assert (uniform, rnd, maxmin) == pytest.approx((0.080, 0.071, 0.065), abs=0.006)


def test_rnd_knows_what_it_was_trained_on():
    tried = np.random.default_rng(0).uniform(-1, 0, (20, 3))
    far = np.random.default_rng(1).uniform(0.5, 1, (20, 3))
    assert novelty.rnd(far, tried, SEEDS).mean() > 3 * novelty.rnd(tried, tried, SEEDS).mean()


def test_rnd_is_a_pure_function_of_both_seeds():
    tried, new = np.zeros((3, 2)), np.random.default_rng(0).uniform(-1, 1, (5, 2))
    state = torch.get_rng_state()
    first = novelty.rnd(new, tried, SEEDS)
    torch.rand(3)
    np.testing.assert_array_equal(first, novelty.rnd(new, tried, SEEDS))
    for other in (SEEDS._replace(target=9), SEEDS._replace(predictor=9)):
        assert not np.array_equal(first, novelty.rnd(new, tried, other))
    torch.set_rng_state(state)
    novelty.rnd(new, tried, SEEDS)
    assert torch.equal(state, torch.get_rng_state())


def test_maxmin_is_the_distance_to_the_nearest():
    found = novelty.maxmin(np.array([[0.0, 3.0], [4.0, 0.0]]), np.array([[0.0, 0.0], [4.0, 1.0]]), SEEDS)
    np.testing.assert_allclose(found, [3.0, 1.0])


def test_zscore_of_equals_is_nothing():
    np.testing.assert_array_equal(novelty.zscore(np.ones(4)), np.zeros(4))


def test_predicted_performance_interpolates():
    tried, seen = np.array([[0.0], [1.0]]), np.array([0.2, 0.8])
    found = novelty.predicted_performance(np.array([[0.0], [0.5], [1.0], [50.0]]), tried, seen)
    np.testing.assert_allclose(found, [0.2, 0.5, 0.8, 0.8], atol=0.01)


@pytest.mark.slow
def test_with_few_picks_novelty_visits_the_corners_first():
    """Of small discs inside the square it hits fewer than uniform draws do, and more once there are many picks."""
    centres = np.random.default_rng(5).uniform(0.2, 0.8, (500, 2))

    def hits(score: str, seeds: int, count: int) -> float:
        points = [(picks(score, seed, count) + 1) / 2 for seed in range(seeds)]
        return float(np.mean([(novelty.maxmin(centres, tried, SEEDS) < 0.08).mean() for tried in points]))

    assert hits("rnd", 4, 12) < hits("maxmin", 100, 12) < hits("uniform", 100, 12) - 0.04
    assert hits("maxmin", 100, 40) > hits("uniform", 100, 40) + 0.04

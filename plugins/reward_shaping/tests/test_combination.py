"""The reward as the trainer sees it."""

from __future__ import annotations

import numpy as np
import pytest

from budwood.api import RewardCombination, TermColumn
from budwood_reward_shaping.combination import WeightedTerms
from budwood_reward_shaping.terms import InfoTerm, NativeTerm

COLUMNS = [
    TermColumn("env.reward", 1.0),
    TermColumn("reward_shaping.task", 0.5),
    TermColumn("reward_shaping.speed", 1.0),
    TermColumn("reward_shaping.effort", 1.0),
    TermColumn("curiosity.bonus", 0.25),
]


def bound(terms, w_task=0.5, columns=COLUMNS):
    combination = WeightedTerms(terms, np.array([2.0, 3.0]), np.array([1.0, 10.0]), w_task)
    combination.bind(columns)
    return combination


def test_weights_scales_task_and_other_plugins():
    combination = bound([InfoTerm("effort", "e"), InfoTerm("speed", "s")])
    assert isinstance(combination, RewardCombination)
    assert (combination.columns, combination.task_column) == ([3, 2], 1)
    terms = np.array([[100.0, 1.0, 0.1, -1.0, 4.0]])
    assert combination(terms, None) == pytest.approx(2.0 * -1 + 3.0 * 10 * 0.1 + 0.5 * 1 + 0.25 * 4)


def test_the_environments_own_reward_only_if_asked():
    combination = bound([NativeTerm(), InfoTerm("speed", "s")], columns=[c for c in COLUMNS if "effort" not in c.name])
    assert combination.columns == [0, 2]
    assert combination(np.array([[100.0, 0.0, 0.1, 0.0]]), None) == pytest.approx(2 * 100 + 3 * 10 * 0.1)


def test_changes_make_stored_rewards_stale():
    combination = bound([InfoTerm("effort", "e"), InfoTerm("speed", "s")])
    terms = np.array([[0.0, 0.0, 1.0, 1.0, 0.0]])
    assert combination.version == 0
    combination.change(weights=np.array([1.0, 1.0]))
    assert combination.version == 1
    assert combination(terms, None) == 11.0
    combination.change(scales=np.array([1.0, 1.0]))
    assert combination.version == 2
    assert combination(terms, None) == 2.0
    other = bound([InfoTerm("effort", "e"), InfoTerm("speed", "s")])
    other.load_state_dict(combination.state_dict())
    assert (other.version, other(terms, None)) == (2, 2.0)


def test_scale_is_free_only_without_anything_fixed():
    terms = [InfoTerm("effort", "e"), InfoTerm("speed", "s")]
    assert not bound(terms).scale_free
    assert not bound(terms, w_task=0.0).scale_free
    assert bound(terms, w_task=0.0, columns=COLUMNS[:4]).scale_free


def test_bits_do_not_depend_on_how_many_rows_there_are():
    rng = np.random.default_rng(0)
    combination = bound([InfoTerm("effort", "e"), InfoTerm("speed", "s")])
    terms = rng.normal(size=(1001, 5))
    whole = combination(terms, None)
    parts = np.concatenate([combination(terms[i : i + 7], None) for i in range(0, 1001, 7)])
    np.testing.assert_array_equal(whole, parts)

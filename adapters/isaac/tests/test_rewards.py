"""Rewards term by term: the oracle is a bare environment under the author's weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stand_in import AUTHOR, DT, TERMS, StandIn

from budwood_isaac.rewards import PerTermRewards

STEPS = 40


def actions(count: int, n: int) -> torch.Tensor:
    return torch.rand(count, n, 1, generator=torch.Generator().manual_seed(1)) * 2 - 1


def per_term(env: StandIn) -> PerTermRewards:
    rewards = PerTermRewards(env.reward_manager)
    env.reward_manager = rewards  # type: ignore[assignment]
    return rewards


def totals(env: StandIn) -> torch.Tensor:
    env.reset(seed=3)
    return torch.stack([env.step(action)[1].clone() for action in actions(STEPS, env.num_envs)])


def test_total_is_the_authors_to_the_bit() -> None:
    bare, changed = StandIn(5), StandIn(5)
    rewards = per_term(changed)
    expected = totals(bare)
    assert torch.equal(totals(changed), expected)
    assert bare.reward_manager.resets == rewards.resets > STEPS // 6  # episodes ended, and the manager heard of it
    assert len(expected.unique()) > STEPS


def test_terms_are_signed_times_dt_and_without_the_authors_weight() -> None:
    env = StandIn(5)
    rewards = per_term(env)
    signs = {name: -1.0 if weight < 0 else 1.0 for name, weight in AUTHOR.items()}
    values: dict[str, Any] = {}
    compute = rewards.compute

    def note(dt: float) -> torch.Tensor:
        values.update({name: TERMS[name](env).clone() for name in AUTHOR})
        return compute(dt)

    rewards.compute = note  # type: ignore[method-assign]
    env.reset(seed=3)
    for action in actions(STEPS, 5):
        _, total, *_ = env.step(action)
        for column, (name, sign) in enumerate(signs.items()):
            expected = sign * values[name].to(torch.float64) * DT
            assert torch.equal(rewards.terms[:, column], expected)
        weights = torch.tensor([abs(weight) for weight in AUTHOR.values()], dtype=torch.float64)
        used = weights > 0
        assert torch.allclose(rewards.terms[:, used] @ weights[used], total.double(), rtol=1e-6, atol=1e-8)


def test_a_term_of_weight_zero_is_computed_too_and_adds_nothing() -> None:
    env = StandIn(2)
    env.reset(seed=0)
    env.step(torch.zeros(2, 1))
    assert "metric" not in env.reward_manager.computed
    rewards = per_term(env)
    _, total, *_ = env.step(torch.zeros(2, 1))
    assert rewards.computed == list(AUTHOR)
    assert rewards.terms[:, 3].isinf().all()
    assert total.isfinite().all()


def test_terms_outlive_the_next_step() -> None:
    env = StandIn(2)
    rewards = per_term(env)
    env.reset(seed=0)
    env.step(torch.ones(2, 1))
    kept = rewards.terms
    copy = kept.clone()
    env.step(torch.ones(2, 1))
    assert torch.equal(kept, copy)
    assert not torch.equal(rewards.terms, copy)


def halve(env: Any) -> None:
    """A curriculum reads the weight that it changes."""
    term = env.reward_manager.get_term_cfg("place")
    term.weight = term.weight / 2 if term.weight < -0.05 else 0.4
    env.reward_manager.set_term_cfg("place", term)


def test_curricula_see_and_change_the_authors_weights() -> None:
    bare, changed = StandIn(5), StandIn(5)
    bare.curriculum = changed.curriculum = halve
    rewards = per_term(changed)
    assert torch.equal(totals(changed), totals(bare))
    assert rewards.get_term_cfg("place").weight == bare.reward_manager.get_term_cfg("place").weight
    assert rewards.author_weights[-1] == 0.4  # the sign that the terms are read with stays the first
    assert (rewards.terms[:, -1] <= 0).all()


def test_weights_are_put_back_when_a_term_fails() -> None:
    env = StandIn(2)
    rewards = per_term(env)
    rewards.get_term_cfg("speed").func = lambda env: 1 / 0
    with pytest.raises(ZeroDivisionError):
        rewards.compute(dt=DT)
    assert {name: rewards.get_term_cfg(name).weight for name in AUTHOR} == AUTHOR

"""Criteria and task reward against a reference that keeps whole episodes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budwood_reward_shaping.criteria import Criterion, Performance, TaskReward, measure
from budwood_reward_shaping.terms import InfoReader

REFERENCE = {"final": lambda x: x[-1], "sum": sum, "mean": np.mean, "max": max, "min": min}


def criteria(threshold: float = 0.0) -> list[Criterion]:
    ops = {"final": ">=", "sum": "<=", "mean": ">=", "max": "<=", "min": ">="}
    return [Criterion(stat, InfoReader(["x"]), stat, ops[stat], threshold) for stat in REFERENCE]


def met(values: list[float], wanted: list[Criterion]) -> list[bool]:
    results = [REFERENCE[c.stat](values) for c in wanted]
    return [r >= c.threshold if c.op == ">=" else r <= c.threshold for r, c in zip(results, wanted, strict=True)]


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 5),
    steps=st.integers(1, 30),
    mode=st.sampled_from(["all", "fraction"]),
    seed=st.integers(0, 2**31),
    threshold=st.floats(-1, 1),
)
def test_task_reward_is_the_brute_force_one(batch, n, steps, mode, seed, threshold):
    rng = np.random.default_rng(seed)
    wanted = criteria(threshold)
    task = TaskReward(wanted, mode)
    episodes: list[list[float]] = [[] for _ in range(n)]
    for step in range(steps):
        x, dones = rng.normal(size=n), rng.random(n) < 0.3
        if step == steps // 2:  # a checkpoint in the middle of episodes
            state = task.state_dict()
            task = TaskReward(wanted, mode)
            task.load_state_dict(state)
        reward = task(batch([{"x": value} for value in x], dones))
        for i in range(n):
            episodes[i].append(float(x[i]))
            expected = 0.0
            if dones[i]:
                result = met(episodes[i], wanted)
                expected = float(all(result)) if mode == "all" else np.mean(result)
                episodes[i] = []
            assert reward[i] == pytest.approx(expected)


def test_restart_forgets_unfinished_episodes(batch):
    task = TaskReward([Criterion("total", InfoReader(["x"]), "sum", ">=", 2.0)])
    task(batch([{"x": 1.0}]))
    task.restart()
    assert task(batch([{"x": 1.0}], [True])) == [0.0]
    assert task(batch([{"x": 2.0}], [True])) == [1.0]


def test_performance():
    both = np.array([[1, 1], [1, 0], [0, 0], [1, 1]], dtype=bool)
    found = Performance.of(["speed", "effort"], both)
    assert (found.p, found.soft, found.each) == (0.5, 0.625, {"speed": 0.75, "effort": 0.5})
    assert found.se == pytest.approx(0.25)
    assert set(found.metrics()) == {"P", "P_se", "P_soft", "criterion/speed", "criterion/effort"}


def test_measure_follows_each_environment_as_the_batch_shrinks(control):
    """Two environments, the second plays one episode more and it is long: statistics are never mixed between them."""
    lengths = iter([3, 5, 1, 2, 2, 4, 1, 1, 7])
    played: list[int] = []

    def play():
        length = next(lengths)
        played.append(length)
        return [{"x": 1.0}] * length

    wanted = [
        Criterion("long", InfoReader(["x"]), "sum", ">=", 3.0),
        Criterion("mean", InfoReader(["x"]), "mean", "<=", 1.0),
    ]
    found = measure(control(play), wanted, episodes=9, seed=3)
    assert len(played) == 9
    assert found.p == pytest.approx(np.mean([length >= 3 for length in played]))
    assert found.each["mean"] == 1.0

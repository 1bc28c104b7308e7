"""What a search leaves behind: the policy of the best weights, and policies trained afresh under them."""

from __future__ import annotations

import numpy as np
import pytest

from budwood.api import NATIVE, PluginError, Rollout, TermColumn
from budwood_reward_shaping import shaping as assembly
from budwood_reward_shaping.config import ShapingConfig
from budwood_reward_shaping.retraining import interval

SECTION = {
    "terms": ["speed", "effort"],
    "criteria": [{"name": "far", "source": "x", "stat": "final", "op": ">=", "threshold": 4.0}],
    "weights": {"scale": None},
    "outer": {"steps": 4, "inner_steps": 100, "episodes": 4},
    "baseline": "random",
}


class Run:
    """A search on a double whose policy is the number of the step it was last trained at, or minus its seed when fresh.

    ``performances`` are what evaluations will show, one after another.
    """

    def __init__(self, run_for, control, performances, total=10_000, **changes):
        config = ShapingConfig.model_validate({**SECTION, **changes})
        self.shaping = assembly.assemble(run := run_for(config))
        names = [NATIVE, *(f"reward_shaping.{term.name}" for term in self.shaping.reward_terms())]
        self.shaping.combination.bind([TermColumn(name, 1.0) for name in names])
        [self.search] = assembly.callbacks(self.shaping, run)
        self.performances = iter(performances)
        self.successes: list[bool] = []
        self.control = control(self._episode)
        self.control.total_steps = total
        self.search.on_run_start(self.control)
        self.search.rollouts_seen = True

    def _episode(self):
        if not self.successes:
            done = round(4 * next(self.performances))
            self.successes = [True] * done + [False] * (4 - done)
        return [{"x": 5.0 if self.successes.pop() else 0.0, "speed": 0.0, "effort": 0.0}]

    def train(self, boundaries, steps=50):
        for _ in range(boundaries):
            if self.control.stopped or self.control.steps >= self.control.total_steps:
                break
            self.control.steps += steps
            self.control.env_steps += steps
            self.control.policy = self.control.steps
            self.search.on_update_end(self.control)
        return self

    def end(self):
        self.search.on_run_end(self.control)
        return self

    def logged(self, name):
        return [m[f"reward_shaping/{name}"] for m in self.control.logged if f"reward_shaping/{name}" in m]


@pytest.fixture
def make(run_for, control):
    return lambda performances, **changes: Run(run_for, control, performances, **changes)


def test_inner_steps_count_environment_steps(make):
    run = make([0.0, 0.25, 0.5, 0.0]).train(7)
    assert run.logged("env_steps") == [104, 208, 312]
    run = make([0.0, 0.0]).train(3, steps=70)
    assert [m["reward_shaping/env_steps"] for m in run.control.logged] == [144]


def test_a_run_that_ends_in_the_middle_leaves_the_best_policy(make):
    run = make([0.0, 0.75, 0.25], total=300).train(99).end()
    assert run.control.policy == 200
    assert run.control.loaded == [200]


def test_the_policy_evaluated_last_is_left_alone_if_it_is_the_best(make):
    run = make([0.0, 0.25, 0.5], total=300).train(99).end()
    assert run.control.policy == 300
    assert run.control.loaded == []


def test_the_best_policy_is_there_before_the_last_evaluation_of_the_run(make):
    """At the last boundary, not only in ``on_run_end``: the run evaluates in between."""
    assert make([0.75, 0.0], total=200).train(99).control.policy == 100
    assert make([0.75, 0.0], total=1000).train(5).end().control.policy == 100, "stopped by somebody else"


def test_training_that_goes_on_after_the_end_leaves_the_best_again(make):
    """A grafted trainer may be told to learn once more."""
    run = make([0.75, 0.0, 0.25], total=200).train(99).end()
    assert run.control.policy == 100
    run.control.total_steps = 300
    run.train(99).end()
    assert run.control.policy == 100


def test_after_success_the_best_policy_is_left(make):
    run = make([0.25, 1.0, 1.0], baseline="constant_reset").train(99).end()
    assert run.control.stopped == "the task was done in 2 evaluations in a row"
    assert run.control.policy == 300, "trained longer under the same weights, and as good"


def test_a_spent_search_trains_on_and_leaves_whichever_policy_is_better(make):
    worse = make([0.0, 0.5, 0.0, 0.25, 0.25], total=600).train(99).end()
    assert worse.logged("last_P") == [0.25]
    assert worse.control.policy == 200
    better = make([0.0, 0.5, 0.0, 0.25, 0.5], total=600).train(99).end()
    assert better.control.policy == 600
    assert len(better.logged("last_P")) == 1
    budget = make([0.0, 0.5, 0.0, 0.25, 0.75], total=900).train(11).end()
    assert budget.logged("last_P") == [0.75], "measured when the run ends before its last step, too"
    assert budget.control.policy == 550
    just_spent = make([0.0, 0.5, 0.0, 0.25], total=400).train(99).end()
    assert just_spent.logged("last_P") == []
    assert just_spent.control.policy == 200


FINAL = {"outer": {**SECTION["outer"], "final_seeds": 3}}


def test_policies_are_trained_afresh_under_the_best_weights(make):
    run = make([0.0, 0.75, 0.25, 0.5, *(0.5, 1.0, 0.75)], **FINAL).train(8)
    weights = run.search.loop.best
    np.testing.assert_allclose(np.log(run.shaping.combination.weights), weights.phi)
    resets = len(run.control.resets)
    run.train(99).end()
    assert run.control.stopped == "3 policies trained afresh under the best weights reach P = 0.75 on average"
    assert run.control.steps == 700
    assert len(run.control.resets) == resets + 2
    assert len(set(run.control.resets)) == len(run.control.resets)
    np.testing.assert_allclose(np.log(run.shaping.combination.weights), weights.phi)
    assert [run.logged(f"final/P_{i}") for i in (1, 2, 3)] == [[0.5], [1.0], [0.75]]
    assert run.logged("final/P") == pytest.approx([0.5, 0.75, 0.75])
    low, high = run.logged("final/P_low")[-1], run.logged("final/P_high")[-1]
    assert (low, high) == (0.5, 1.0)
    assert len(run.logged("final/P_low")) == 2, "one policy alone has no interval"
    assert run.control.policy == 600, "the best of those trained afresh, though the search had seen 0.75 elsewhere"


def test_they_are_measured_on_seeds_of_their_own(make):
    run = make([0.0, 0.75, 0.25, 0.5, *(0.5, 1.0, 0.75)], **FINAL).train(99)
    assert run.control.seeds == [1_000_000] * 4 + [2_000_000, 2_001_000, 2_002_000]


def test_success_leads_to_retraining_too(make):
    run = make([1.0, 1.0, 0.5, 0.5, 0.75], baseline="uniform", **FINAL).train(99).end()
    assert run.logged("final/P")[-1] == pytest.approx(7 / 12)
    assert run.control.steps == 500


def test_a_budget_that_ends_before_leaves_the_best_so_far(make):
    run = make([0.0, 0.75, 0.25, 0.5, 0.5], total=550, **FINAL).train(99).end()
    assert run.logged("final/P") == [0.5]
    assert run.control.policy == 500, "of one policy trained afresh"
    none = make([0.0, 0.75, 0.25, 0.5], total=450, **FINAL).train(99).end()
    assert none.control.policy == 200, "of the search"


@pytest.mark.parametrize("cut", [1, 2, 5, 8, 9, 10, 12, 14])
def test_resumed_anywhere_it_ends_with_the_same(make, cut):
    shown = [0.0, 0.75, 0.25, 0.5, 0.5, 1.0, 0.75]
    whole = make(shown, **FINAL).train(99).end()
    first = make(shown, total=50 * cut, **FINAL).train(99).end()
    second = make(shown[cut // 2 :], **FINAL)
    second.control.steps, second.control.env_steps = first.control.steps, first.control.env_steps
    second.control.policy, second.control.stopped = first.control.policy, first.control.stopped
    second.search.load_state_dict(first.search.state_dict())
    if not first.control.stopped:
        assert second.control.policy == first.control.steps, "training goes on with the policy that was in training"
    second.train(99).end()
    assert first.control.logged + second.control.logged == whole.control.logged
    assert first.control.resets + second.control.resets == whole.control.resets
    assert second.control.policy == whole.control.policy


def test_interval_is_that_of_the_mean():
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    low, high = interval(values, rng)
    half = 1.96 * values.std() / 20
    np.testing.assert_allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.01)
    assert interval(np.ones(3), rng) == (1.0, 1.0)


# ---- advantages of another plugin -----------------------------------------------------------------------------------


def shown(by):
    ones = np.ones((4, 2))
    return Rollout(
        obs=np.zeros((4, 2, 3)), actions=np.zeros((4, 2, 1)), terms=np.zeros((4, 2, 4)), columns=(), rewards=ones,
        values=ones, advantages=ones, episode_starts=ones, last_dones=np.ones(2, bool), gamma=0.9, gae_lambda=0.9,
        log_prob=None, after_transforms=lambda: None, advantages_by=by,
    )  # fmt: skip


@pytest.mark.parametrize("estimator", ["one_step", "neumann", "unrolled"])
def test_gradients_through_gae_are_refused_when_the_advantages_are_anothers(make, estimator):
    outer = {**SECTION["outer"], "estimator": estimator}
    run = make([], outer=outer, baseline=None)
    run.search.rollouts_seen = False
    with pytest.raises(PluginError) as error:
        run.search.on_rollout_end(run.control, shown("flow_rl (budwood-flow-rl 0.1.0)"))
    assert str(error.value) == (
        f"plugins.reward_shaping.outer.estimator: estimator {estimator} of reward_shaping differentiates GAE, and the "
        "advantages of this run are made by flow_rl (budwood-flow-rl 0.1.0). Use estimator: score, a baseline without "
        "gradients such as random, or leave one of the two plugins out."
    )
    run.search.rollouts_seen = False
    for changes in (
        {"outer": {**outer, "estimator": "score"}, "baseline": None},
        {"outer": outer, "baseline": "sweep"},
    ):
        other = make([], **changes)
        other.search.rollouts_seen = False
        other.search.on_rollout_end(other.control, shown("flow_rl (budwood-flow-rl 0.1.0)"))

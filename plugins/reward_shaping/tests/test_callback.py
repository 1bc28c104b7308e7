"""Calibration and the search, driven by a double: what is counted, decided, logged and restored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from budwood.api import NATIVE, Rollout, TermColumn
from budwood_reward_shaping import shaping as assembly
from budwood_reward_shaping.calibration import Calibration
from budwood_reward_shaping.callback import Search
from budwood_reward_shaping.config import ShapingConfig

SECTION = {
    "terms": ["speed", "effort"],
    "criteria": [{"name": "far", "source": "x", "stat": "final", "op": ">=", "threshold": 4.0}],
    "weights": {"scale": None},
    "outer": {"steps": 6, "inner_iterations": 2, "rollouts": 1, "episodes": 3},
    "explore": {"novelty": "maxmin"},
}


class LogProb(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, obs, actions):
        return torch.distributions.Normal(self.mean, 1.0).log_prob(actions).sum(-1)


@pytest.fixture
def make(run_for):
    def build(seed=0, **changes):
        run = run_for(ShapingConfig.model_validate({**SECTION, **changes}), seed=seed)
        shaping = assembly.assemble(run)
        names = [NATIVE, *(f"reward_shaping.{term.name}" for term in shaping.reward_terms())]
        shaping.combination.bind([TermColumn(name, 1.0) for name in names])
        return shaping, assembly.callbacks(shaping, run)

    return build


def rollout(seed=0, informative=True, columns=4):
    rng = np.random.default_rng(seed)
    terms = rng.normal(size=(10, 4, columns))
    terms[..., 3] = -np.abs(terms[..., 3])
    actions = rng.normal(size=(10, 4, 1))
    terms[..., 1] = actions[..., 0] > 0 if informative else 0.0
    return Rollout(
        obs=np.zeros((10, 4, 3)),
        actions=actions,
        terms=terms,
        columns=(),
        rewards=terms[..., 2],
        values=np.zeros((10, 4)),
        advantages=terms[..., 2] + terms[..., 3],
        episode_starts=np.ones((10, 4), dtype=np.float32),
        last_dones=np.ones(4, bool),
        gamma=0.9,
        gae_lambda=0.9,
        log_prob=LogProb(),
        after_transforms=lambda: None,
    )


def near():
    return [{"x": 1.0, "speed": 0.0, "effort": 0.0}] * 2


def far():
    return [{"x": 5.0, "speed": 0.0, "effort": 0.0}] * 2


def iterate(callbacks, control, count, informative=None):
    """``informative`` None: every third rollout has no variance in the task."""
    for _ in range(count):
        control.steps += 40
        control.env_steps += 40
        shown = rollout(control.steps, control.steps % 120 != 80 if informative is None else informative)
        for callback in callbacks:
            callback.on_rollout_end(control, shown)
        for callback in callbacks:
            callback.on_update_end(control)


def test_an_outer_step_after_so_many_iterations(make, control):
    shaping, [search] = make()
    ctl = control(near)
    search.on_run_start(ctl)
    iterate([search], ctl, 1, informative=True)
    assert ctl.logged == []
    iterate([search], ctl, 1, informative=True)
    (metrics,) = ctl.logged
    assert metrics["reward_shaping/P"] == 0.0
    assert metrics["reward_shaping/w/speed"] == metrics["reward_shaping/w/effort"] == 1.0
    assert metrics["reward_shaping/stepped"] == 1.0
    assert metrics["reward_shaping/grad_norm"] > 0
    assert metrics["reward_shaping/env_steps"] == 80 + 6
    assert metrics["reward_shaping/criterion/far"] == 0.0
    assert set(metrics) >= {
        f"reward_shaping/{k}" for k in ("P_se", "P_soft", "best_P", "zero_grad", "explored", "novelty")
    }
    assert len(ctl.resets) == 1
    assert shaping.combination.version == 1
    assert not np.array_equal(shaping.combination.weights, [1, 1])
    assert ctl.seeds == [1_000_000]
    assert ctl.stopped is None


def test_no_variance_in_the_task_is_counted_and_leads_to_a_jump(make, control):
    _, [search] = make(outer={**SECTION["outer"], "rollouts": 2})
    ctl = control(near)
    search.on_run_start(ctl)
    iterate([search], ctl, 2, informative=False)
    assert ctl.logged[0]["reward_shaping/zero_grad"] == 2
    assert ctl.logged[0]["reward_shaping/explored"] == 1
    assert ctl.logged[0]["reward_shaping/grad_norm"] == 0


def test_success_stops_the_run_and_keeps_the_policy(make, control):
    shaping, [search] = make()
    ctl = control(far)
    search.on_run_start(ctl)
    iterate([search], ctl, 4)
    assert [m["reward_shaping/P"] for m in ctl.logged] == [1.0, 1.0]
    assert ctl.stopped == "the task was done in 2 evaluations in a row"
    assert ctl.resets == []
    assert shaping.combination.version == 0
    iterate([search], ctl, 4)
    assert len(ctl.logged) == 2


def test_a_spent_search_trains_on_under_the_best_weights(make, control):
    shaping, [search] = make(outer={**SECTION["outer"], "steps": 2})
    ctl = control(near)
    search.on_run_start(ctl)
    iterate([search], ctl, 10)
    assert len(ctl.logged) == 2
    np.testing.assert_array_equal(shaping.combination.weights, [1, 1])
    assert ctl.stopped is None


def test_reset_restarts_the_task_statistics(make, control, batch):
    shaping, [search] = make()
    ctl = control(near)
    search.on_run_start(ctl)
    shaping.task(batch([{"x": 9.0}, {"x": 9.0}]))
    iterate([search], ctl, 2)
    assert shaping.task.state_dict() == {"values": None}


def test_a_trainer_without_rollouts_is_refused(make):
    _, [search] = make()
    assert str(search.without_rollouts()) == (
        "plugins.reward_shaping.outer.estimator: estimator one_step follows the rollouts of an on-policy trainer, and this "
        "one shows none. Use estimator: score, a baseline without gradients such as random, trainer.algo: ppo, a2c or trpo, "
        "or keep the weights fixed with outer: null."
    )
    _, [search] = make(outer={**SECTION["outer"], "estimator": "score"})
    assert "Give outer.inner_steps, the environment steps under each weight vector" in str(search.without_rollouts())
    _, [search] = make(weights={"param": "state", "scale": None}, baseline="random")
    assert "param: state takes its normaliser from the first rollout" in str(search.without_rollouts())
    _, [calibration] = make(outer=None, weights={"scale": "auto"})
    assert "scale: auto is measured on the first rollout" in str(calibration.without_rollouts())
    counted = {"steps": 2, "inner_steps": 100, "estimator": "score"}
    _, [search] = make(outer=counted)
    assert search.without_rollouts() is None
    _, [search] = make(outer={**counted, "estimator": "one_step"}, baseline="random")
    assert search.without_rollouts() is None


def test_auto_scale_comes_from_the_first_rollout_and_stays(make, control):
    shaping, [calibration, search] = make(weights={"scale": {"speed": "auto", "effort": 3.0}})
    assert isinstance(calibration, Calibration)
    assert isinstance(search, Search)
    ctl = control(near)
    search.on_run_start(ctl)
    shown = rollout(1)
    for callback in (calibration, search):
        callback.on_rollout_end(ctl, shown)
    expected = 1 / shown.terms[..., 2].std()  # every sample is an episode
    np.testing.assert_allclose(shaping.combination.scales, [expected, 3.0])
    assert shaping.combination.version == 1
    assert ctl.logged[0]["reward_shaping/scale/speed"] == pytest.approx(expected)
    iterate([calibration, search], ctl, 1)
    assert shaping.combination.scales[0] == pytest.approx(expected)


def test_a_constant_term_is_left_as_it_is(make, control):
    shaping, [calibration, _] = make(weights={"scale": "auto"})
    shown = rollout(1)
    shown.terms[..., 2] = 0.0
    calibration.on_rollout_end(control(near), shown)
    assert shaping.combination.scales[0] == 1.0


def test_the_first_rollouts_stale_advantages_are_not_used(make, control):
    _, callbacks = make(weights={"scale": "auto"}, outer={**SECTION["outer"], "rollouts": 2})
    ctl = control(near)
    callbacks[1].on_run_start(ctl)
    iterate(callbacks, ctl, 1)
    assert callbacks[1].gradients == []
    assert callbacks[1].zero_gradients == 0
    iterate(callbacks, ctl, 1, informative=True)
    assert ctl.logged[-1]["reward_shaping/grad_norm"] > 0


def test_a_restored_search_continues_to_the_same_numbers(make, control):
    def fresh():
        shaping, callbacks = make(
            weights={"scale": "auto"}, outer={**SECTION["outer"], "inner_iterations": 3, "rollouts": 2}
        )
        ctl = control(near)
        callbacks[1].on_run_start(ctl)
        return shaping, callbacks, ctl

    whole, callbacks, straight = fresh()
    iterate(callbacks, straight, 14)
    for cut in (1, 2, 3, 5, 9):
        _, callbacks, first = fresh()
        iterate(callbacks, first, cut)
        states = [callback.state_dict() for callback in callbacks]
        restored, callbacks, second = fresh()
        second.steps, second.env_steps = first.steps, first.env_steps
        for callback, state in zip(callbacks, states, strict=True):
            callback.load_state_dict(state)
        iterate(callbacks, second, 14 - cut)
        assert first.logged + second.logged == straight.logged
        assert first.resets + second.resets == straight.resets
        np.testing.assert_array_equal(restored.combination.coefficients, whole.combination.coefficients)
        assert restored.combination.version == whole.combination.version


def test_fixed_weights_need_no_callback_and_measure_with_the_run(make, run_for, control):
    _, callbacks = make(outer=None)
    assert callbacks == []
    config = ShapingConfig.model_validate({**SECTION, "outer": None})
    run = run_for(config, config={"evaluation": {"every": 500, "episodes": 4}})
    shaping = assembly.assemble(run)
    (evaluator,) = assembly.evaluators(shaping, run)
    assert evaluator.every == 500
    assert evaluator.run(control(far)).metrics["P"] == 1.0
    never = run_for(config, config={"evaluation": {"every": 500, "episodes": 0}})
    assert assembly.evaluators(assembly.assemble(never), never) == []


def test_without_criteria_there_is_no_task_column(run_for):
    run = run_for(ShapingConfig.model_validate({"terms": ["speed", "native"], "outer": None}))
    assert [term.name for term in assembly.assemble(run).reward_terms()] == ["speed"]

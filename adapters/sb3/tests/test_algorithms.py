"""Every algorithm of Stable-Baselines3 and sb3-contrib goes the same way, with terms, callbacks, evaluation and state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from budwood.api import BindingError, ConfigError, RewardTerm, hookimpl
from budwood_sb3 import algorithms
from budwood_sb3.trainer import build

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ROLLOUTS = {"n_steps": 16, "batch_size": 16, "n_epochs": 1}
REPLAY = {"learning_starts": 10, "batch_size": 8, "buffer_size": 200, "policy_kwargs": {"net_arch": [16]}}
ARGS: dict[str, dict[str, Any]] = {
    "ppo": ROLLOUTS,
    "a2c": {"n_steps": 16},
    "recurrent_ppo": {**ROLLOUTS, "policy_kwargs": {"lstm_hidden_size": 8}},
    "maskable_ppo": ROLLOUTS,
    "trpo": {"n_steps": 16, "batch_size": 16},
    "ars": {"n_delta": 2},
    **dict.fromkeys(("sac", "td3", "ddpg", "dqn", "qrdqn", "tqc", "crossq"), REPLAY),
}


class Terms:
    @hookimpl
    def reward_terms(self, run: Any) -> Any:
        yield RewardTerm("speed", info_key="speed", weight=0.1)
        yield RewardTerm(
            "size", fn=lambda batch: -np.square(batch.actions).reshape(len(batch.dones), -1).sum(axis=1) * 0.1
        )


def fitting(name: str) -> str:
    return "Point-v0" if "Box" in algorithms.ALGORITHMS[name].actions else "PointDiscrete-v0"


def section(name: str) -> dict[str, Any]:
    return {"algo": name, "args": ARGS[name], "total_timesteps": 500 if name == "ars" else 104}


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_it_trains_and_everything_is_bound(name: str, make_run: Any, train: Any, events: Any) -> None:
    run = make_run(section(name), {"id": fitting(name), "n_envs": 2})
    seen = events(at=lambda steps: True, every=32, rollouts=True)
    terms = [] if name == "ars" else [Terms()]
    trainer = train(run, *terms, events=seen)
    assert trainer.native.num_timesteps >= 104
    assert seen.started == 1
    assert seen.boundaries[0] >= 32
    assert seen.boundaries[-1] == trainer.native.num_timesteps
    assert bool(seen.shown) == algorithms.ALGORITHMS[name].on_policy
    if terms and name != "a2c":  # which logs every 100 rollouts
        logged = {key for _, metrics in seen.logged for key in metrics}
        assert {"terms/env.reward", "terms/terms.speed", "terms/terms.size", "rollout/shaped_return"} <= logged
    evaluation = trainer.evaluate(3, seed=1)
    assert evaluation.lengths.shape == (3,)
    assert evaluation.env_steps >= evaluation.lengths.sum()
    assert (trainer.evaluate(3, seed=1).returns == evaluation.returns).all()
    trainer.close()


@pytest.mark.parametrize("name", ["ppo", "a2c", "sac", "td3", "tqc", "recurrent_ppo", "trpo"])
def test_dict_observations(name: str, make_run: Any, train: Any) -> None:
    run = make_run(section(name), {"id": "PointDict-v0", "n_envs": 2, "normalize": {"obs": True}})
    trainer = train(run, Terms())
    assert "Multi" in trainer.native.policy_class.__name__
    assert trainer.evaluate(2, seed=1).env_steps == 50


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_a_run_goes_on_from_a_boundary_to_the_same_parameters(
    name: str, make_run: Any, contribute: Any, train: Any, events: Any, same: Any
) -> None:
    """The state taken in the middle, put into a fresh trainer, gives the uninterrupted run bit for bit."""
    run = make_run(section(name), {"id": fitting(name), "n_envs": 2})
    terms = [] if name == "ars" else [Terms()]
    whole_events = events(at=lambda steps: True, every=1)
    whole = train(run, *terms, events=whole_events)
    first = build(run, contribute(run, *terms))
    first.fit(events(at=lambda steps: False, every=48))
    saved = first.state_dict()
    assert 48 <= first.native.num_timesteps < whole.native.num_timesteps
    second = build(run, contribute(run, *terms))
    assert second.load_state_dict(saved) == []
    after = events()
    second.fit(after)
    assert same(second.native, whole.native)
    assert second.native.num_timesteps == whole.native.num_timesteps
    rest = [entry for entry in whole_events.logged if entry[0] > first.native.num_timesteps]
    assert untimed(after.logged) == untimed(rest)


def untimed(logged: Any) -> Any:
    return [(step, {k: v for k, v in metrics.items() if not k.startswith("time/")}) for step, metrics in logged]


def test_an_action_space_that_does_not_fit_is_refused_with_those_that_do(make_run: Any, contribute: Any) -> None:
    run = make_run(section("sac"), {"id": "PointDiscrete-v0"})
    with pytest.raises(ConfigError) as raised:
        build(run, contribute(run))
    assert str(raised.value) == (
        "trainer.algo: SAC takes Box actions, and PointDiscrete-v0 has Discrete actions. For Discrete actions use ppo, "
        "a2c, dqn, recurrent_ppo, maskable_ppo, trpo, qrdqn, ars."
    )


class Extras:
    """One contribution of every kind that a trainer may not have a place for."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def _if(self, kind: str, value: Any) -> Any:
        return value if self.kind == kind else None

    @hookimpl
    def advantage(self, run: Any) -> Any:
        return self._if("advantage", lambda inputs: inputs.values)

    @hookimpl
    def build_policy(self, run: Any) -> Any:
        return self._if("build_policy", lambda observations, actions: None)

    @hookimpl
    def reward_terms(self, run: Any) -> Any:
        return self._if("reward_terms", [RewardTerm("speed", info_key="speed")]) or []

    @hookimpl
    def loss_terms(self, run: Any) -> Any:
        from budwood.api import LossTerm

        return self._if("loss_terms", [LossTerm("zero", fn=lambda inputs: 0, needs=frozenset({"clip_range"}))]) or []


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (
            "sac",
            "advantage",
            "trainer SAC cannot bind advantage <lambda>: SAC learns from a replay buffer and computes no advantages",
        ),
        (
            "sac",
            "build_policy",
            "trainer SAC cannot bind policy <lambda>: the networks of SAC are an actor and critics, not one actor-critic "
            "policy",
        ),
        (
            "trpo",
            "build_policy",
            "trainer TRPO cannot bind policy <lambda>: TRPO calls its policy in ways that a neutral policy does not offer: "
            "PPO and A2C do not",
        ),
        (
            "td3",
            "loss_terms",
            "trainer TD3 cannot bind loss term extras.zero: the update of TD3 has no place for it: PPO, A2C and SAC have",
        ),
        (
            "ars",
            "reward_terms",
            "trainer ARS cannot bind reward term extras.speed: ARS scores a candidate by the return that Monitor saw, "
            "before any reward term",
        ),
        (
            "a2c",
            "loss_terms",
            "loss term extras.zero needs `clip_range`; trainer A2C offers actions, advantages, entropy, log_prob, obs, "
            "old_log_prob, old_values, policy, returns, share, values",
        ),
    ],
)
def test_what_cannot_be_bound_is_refused_with_the_reason(
    name: str, kind: str, message: str, make_run: Any, contribute: Any
) -> None:
    run = make_run(section(name), {"id": fitting(name)})
    with pytest.raises(BindingError) as raised:
        contribute(run, Extras(kind))
    assert raised.value.what == message

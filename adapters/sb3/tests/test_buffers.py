"""Stored experience under other weights: the oracle is always a buffer that saw those weights from the start."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.save_util import load_from_pkl

from budwood.api import (
    AdvantageInputs,
    BindingError,
    Contributed,
    ContributionError,
    Contributions,
    RewardTerm,
    hookimpl,
)
from budwood_sb3 import buffers, vec
from budwood_sb3.trainer import build

PPO = {"algo": "ppo", "args": {"n_steps": 64, "batch_size": 32, "n_epochs": 1, "gamma": 0.9}, "total_timesteps": 128}
OFF = {"learning_starts": 20, "buffer_size": 60, "batch_size": 16}


class Weights:
    """A combination whose weights a test moves."""

    def __init__(self, weights: tuple[float, ...], needs_obs: bool = False) -> None:
        self.weights, self.version, self.needs_obs = np.array(weights), 0, needs_obs

    def bind(self, columns: Any) -> None: ...

    def move(self, *weights: float) -> None:
        self.weights, self.version = np.array(weights), self.version + 1

    def __call__(self, terms: Any, obs: Any) -> Any:
        if not self.needs_obs:
            return terms @ self.weights
        place = obs["place"] if isinstance(obs, dict) else obs
        return terms @ self.weights + place[:, 0].astype(np.float64) * terms[:, 1]


class Shape:
    def __init__(self, combination: Weights | None = None) -> None:
        self.combination = combination

    @hookimpl
    def reward_terms(self, run: Any) -> Any:
        yield RewardTerm("speed", info_key="speed", weight=0.3)
        yield RewardTerm("effort", info_key="effort", weight=0.2)

    @hookimpl
    def reward_combination(self, run: Any) -> Any:
        return self.combination


def kept(buffer: Any) -> dict[str, Any]:
    return {name: getattr(buffer, name).copy() for name in ("rewards", "advantages", "returns")}


@pytest.fixture(params=["Point-v0", "PointDict-v0"])
def rollout(request: Any, make_run: Any, contribute: Any, events: Any) -> Any:
    """(weights, ...) -> the buffer after two rollouts without an update, and its combination."""

    def collect(*weights: float, needs_obs: bool = False, normalize: Any = None) -> tuple[Any, Weights]:
        env = {"id": request.param, "n_envs": 2, "normalize": normalize}
        run, combination = make_run({**PPO, "total_timesteps": 128}, env), Weights(weights, needs_obs)
        trainer = build(run, contribute(run, Shape(combination)))
        trainer.native.train = lambda: None
        trainer.fit(events())
        return trainer.native.rollout_buffer, combination

    return collect


def test_unchanged_weights_reproduce_rewards_and_advantages_exactly(rollout: Any) -> None:
    buffer, combination = rollout(1.0, 0.3, 0.2)
    before = kept(buffer)
    buffer.relabel()
    after = kept(buffer)
    assert all((before[name] == after[name]).all() for name in before)
    assert not buffer.stale
    combination.version += 1
    assert buffer.stale


@pytest.mark.parametrize("needs_obs", [False, True])
@pytest.mark.parametrize("normalize", [None, {"obs": True}])
def test_relabelling_equals_collecting_under_those_weights(rollout: Any, needs_obs: bool, normalize: Any) -> None:
    moved, combination = rollout(1.0, 0.3, 0.2, needs_obs=needs_obs, normalize=normalize)
    meant, _ = rollout(0.1, 2.0, -1.0, needs_obs=needs_obs, normalize=normalize)
    assert not np.allclose(moved.rewards, meant.rewards, atol=0.1)
    combination.move(0.1, 2.0, -1.0)
    moved.relabel()
    for name, value in kept(meant).items():
        assert getattr(moved, name) == pytest.approx(value, abs=2e-6), name


def test_the_time_limit_bootstrap_survives_relabelling(make_run: Any, contribute: Any, events: Any) -> None:
    """What the buffer holds beyond the shaped reward is gamma V(last observation), where and only where time ran out."""
    run = make_run({**PPO, "total_timesteps": 64}, {"id": "Point-v0"})
    combination = Weights((1.0, 0.3, 0.2))
    trainer = build(run, contribute(run, Shape(combination)))
    trainer.native.train = lambda: None
    trainer.fit(events())
    buffer: Any = trainer.native.rollout_buffer
    bootstrap = buffer.rewards - buffer.shaped
    assert np.flatnonzero(bootstrap[:, 0]).tolist() == [24, 49]
    combination.move(0.0, 0.0, 0.0)
    buffer.relabel()
    assert buffer.rewards == pytest.approx(bootstrap, abs=1e-7)


def test_an_update_uses_the_weights_as_they_are_when_it_begins(make_run: Any, contribute: Any, events: Any) -> None:
    run, combination = make_run(PPO, {"id": "Point-v0", "n_envs": 2}), Weights((1.0, 0.3, 0.2))
    trainer = build(run, contribute(run, Shape(combination)))

    class Moving(events):  # type: ignore[misc]
        def rollout_end(self, rollout: Any) -> None:
            combination.move(0.0, 0.0, 0.0)

    trainer.fit(Moving(rollouts=True))
    buffer: Any = trainer.native.rollout_buffer
    assert not buffer.stale
    assert buffer.shaped == pytest.approx(0.0)


class Advantage:
    def __init__(self, function: Any) -> None:
        self.function = function

    @hookimpl
    def advantage(self, run: Any) -> Any:
        return self.function


def test_the_advantage_function_gets_the_rollout_and_its_answer_is_used(make_run: Any, train: Any) -> None:
    seen: list[AdvantageInputs] = []

    def zero(inputs: AdvantageInputs) -> Any:
        seen.append(inputs)
        return np.zeros_like(inputs.values)

    trainer = train(make_run(PPO, {"id": "Point-v0", "n_envs": 2}), Advantage(zero))
    (inputs,) = seen
    assert inputs.rewards.shape == inputs.values.shape == inputs.episode_starts.shape == (64, 2)
    assert inputs.last_values.shape == inputs.last_dones.shape == (2,)
    assert (inputs.gamma, inputs.gae_lambda) == (0.9, 0.95)
    assert (trainer.native.rollout_buffer.returns == trainer.native.rollout_buffer.values).all()


@pytest.mark.parametrize("needs_obs", [False, True])
@pytest.mark.parametrize("claimed", [False, True])
def test_a_rollout_tells_raw_observations_optimiser_and_who_made_the_advantages(
    make_run: Any, contribute: Any, events: Any, needs_obs: bool, claimed: bool
) -> None:
    run = make_run(PPO, {"id": "Point-v0", "n_envs": 2, "normalize": {"obs": True}})
    plugins = [
        Shape(Weights((1.0, 0.3, 0.2), needs_obs)),
        *([Advantage(lambda inputs: inputs.values)] if claimed else []),
    ]
    trainer = build(run, contribute(run, *plugins))
    seen = events(rollouts=True)
    trainer.fit(seen)
    rollout = seen.shown[-1]
    assert rollout.optimizer is trainer.native.policy.optimizer
    assert rollout.advantages_by == ("advantage (budwood-advantage 1.0)" if claimed else None)
    if not needs_obs:
        assert rollout.raw_obs is None
        return
    within = rollout.episode_starts[1:] == 0
    speeds = rollout.terms[:-1, :, 1]  # the info tells what the next observation shows
    np.testing.assert_allclose(rollout.raw_obs[1:, :, 1][within], speeds[within], rtol=1e-6)
    assert not np.allclose(rollout.obs, rollout.raw_obs, atol=0.1)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda inputs: inputs.values[0], "(2,)"),
        (lambda inputs: inputs.values * np.nan, "values that are not finite"),
    ],
)
def test_an_advantage_function_that_misbehaves_is_named(make_run: Any, train: Any, function: Any, what: str) -> None:
    with pytest.raises(ContributionError) as raised:
        train(make_run(PPO, {"id": "Point-v0", "n_envs": 2}), Advantage(function))
    assert str(raised.value) == (
        f"plugins.advantage: the advantage function returned {what}, and the rollout needs (64, 2) finite numbers. "
        "Asked for by budwood-advantage 1.0."
    )


CASES = [
    ("sac", "Point-v0", {}),
    ("sac", "Point-v0", {"n_steps": 3}),
    ("dqn", "PointDiscrete-v0", {}),
    ("sac", "Point-v0", {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}),
    ("sac", "PointDict-v0", {}),
    ("qrdqn", "PointDiscrete-v0", {}),
]


@pytest.mark.parametrize("needs_obs", [False, True])
@pytest.mark.parametrize(("algo", "env", "more"), CASES)
def test_a_replay_buffer_samples_the_rewards_of_the_weights_as_they_are(
    make_run: Any, train: Any, algo: str, env: str, more: Any, needs_obs: bool
) -> None:
    trainer = {"algo": algo, "args": {**OFF, "learning_starts": 1000, **more}, "total_timesteps": 100}
    run = make_run(trainer, {"id": env, "n_envs": 2})
    combination = Weights((1.0, 0.3, 0.2), needs_obs)
    moved = train(run, Shape(combination)).native.replay_buffer
    meant = train(run, Shape(Weights((0.0, 1.0, -2.0), needs_obs))).native.replay_buffer
    before = sampled(moved)
    assert (before == sampled(moved)).all()
    combination.move(0.0, 1.0, -2.0)
    assert not np.allclose(sampled(moved), before)
    assert sampled(moved) == pytest.approx(sampled(meant), abs=1e-6)


def sampled(buffer: Any) -> Any:
    np.random.seed(0)
    return buffer.sample(200).rewards.numpy()


def test_an_n_step_return_recomputes_the_rows_that_follow(make_run: Any, train: Any) -> None:
    args = {**OFF, "learning_starts": 1000, "n_steps": 3}
    run = make_run({"algo": "sac", "args": args, "total_timesteps": 40}, {"id": "Point-v0"})
    combination = Weights((1.0, 0.3, 0.2))
    moved = train(run, Shape(combination)).native.replay_buffer
    meant = train(run, Shape(Weights((0.0, 1.0, -2.0)))).native.replay_buffer
    combination.move(0.0, 1.0, -2.0)
    found, expected = (buffer._get_samples(np.array([5])).rewards.item() for buffer in (moved, meant))
    assert found == pytest.approx(expected, abs=1e-6)
    assert np.flatnonzero(moved.versions).tolist() == [5, 6, 7]


def test_rows_are_recomputed_once(make_run: Any, train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run({"algo": "sac", "args": OFF | {"learning_starts": 1000}, "total_timesteps": 60}, {"id": "Point-v0"})
    combination = Weights((1.0, 0.3, 0.2))
    buffer = train(run, Shape(combination)).native.replay_buffer
    calls: list[int] = []
    plain = buffers._combined
    monkeypatch.setattr(
        buffers, "_combined", lambda source, terms, obs: calls.append(len(terms)) or plain(source, terms, obs)
    )
    sampled(buffer)
    assert calls == []
    combination.move(0.0, 0.0, 1.0)
    for _ in range(3):
        sampled(buffer)
    assert sum(calls) <= 60


def test_a_pickled_buffer_is_a_plain_one(make_run: Any, train: Any, tmp_path: Any) -> None:
    run = make_run({"algo": "sac", "args": OFF, "total_timesteps": 30}, {"id": "Point-v0"})
    model = train(run, Shape(Weights((1.0, 0.0, 0.0)))).native
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = load_from_pkl(tmp_path / "buffer.pkl")
    assert type(loaded) is ReplayBuffer
    assert (loaded.rewards == model.replay_buffer.rewards).all()
    again: Any = buffers.bind_replay(loaded, vec.find(model.env))  # type: ignore[arg-type]
    assert (again.terms == model.replay_buffer.terms).all()


def test_experience_without_terms_cannot_get_them() -> None:
    box = gym.spaces.Box(-10, 10, (2,), np.float32)
    buffer = ReplayBuffer(10, box, gym.spaces.Box(-1, 1, (1,), np.float32))
    buffer.add(np.zeros(2), np.zeros(2), np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    terms = [Contributed(RewardTerm("speed", info_key="speed"), "shape", "budwood-shape 1.0")]
    source = vec.TermVecEnv(make_vec_env("Point-v0"), Contributions(reward_terms=terms))
    with pytest.raises(BindingError) as raised:
        buffers.bind_replay(buffer, source)
    assert str(raised.value) == (
        "replay_buffer: the replay buffer holds experience without these reward terms. "
        "Start with an empty replay buffer, or with one saved under the same terms."
    )

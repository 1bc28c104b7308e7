"""The trainer as core drives it: boundaries, metrics, evaluation, reset, export."""

from __future__ import annotations

import copy
import json
import random
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from budwood.api import BindingError, RewardTerm, StepBatch, hookimpl
from budwood_sb3.fast import FastVecEnv
from budwood_sb3.trainer import build

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ROLLOUTS = {"n_steps": 16, "batch_size": 16, "n_epochs": 1}
REPLAY = {"learning_starts": 10, "batch_size": 8, "buffer_size": 200, "policy_kwargs": {"net_arch": [16]}}
POINTS = {"id": "Point-v0", "n_envs": 2}


def ppo(total: int = 96, **args: Any) -> dict[str, Any]:
    return {"algo": "ppo", "args": {**ROLLOUTS, **args}, "total_timesteps": total}


def sac(total: int = 60, **args: Any) -> dict[str, Any]:
    return {"algo": "sac", "args": {**REPLAY, **args}, "total_timesteps": total}


class Terms:
    @hookimpl
    def reward_terms(self, run: Any) -> Any:
        yield RewardTerm("speed", info_key="speed", weight=0.1)


# ---- the loop ------------------------------------------------------------------------------------------------------


def test_no_frame_of_ours_lies_on_the_way_of_a_step(make_run: Any, contribute: Any, events: Any) -> None:
    """Without plugins no Python function of budwood is called more often than there are rollouts: 20, of 16 steps each."""
    trainer = build(make_run(ppo(total=16 * 2 * 20), POINTS), contribute(make_run(ppo(), POINTS)))
    calls: dict[str, int] = {}

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and "budwood" in frame.f_code.co_filename and "/tests/" not in frame.f_code.co_filename:
            calls[frame.f_code.co_qualname] = calls.get(frame.f_code.co_qualname, 0) + 1

    sys.setprofile(profile)
    try:
        trainer.fit(events())
    finally:
        sys.setprofile(None)
    assert calls
    assert {name for name, count in calls.items() if count > 21} <= {
        "_is_number"
    }  # once a metric, when the log is dumped


def test_boundaries_come_when_due_and_stopping_leaves_at_one(make_run: Any, contribute: Any, events: Any) -> None:
    run = make_run(ppo(total=320), POINTS)
    trainer = build(run, contribute(run))
    seen = events(at=lambda steps: steps < 128, every=64)
    trainer.fit(seen)
    assert seen.boundaries == [64, 128]
    assert trainer.native.num_timesteps == 128


def test_off_policy_boundaries_come_between_updates(make_run: Any, contribute: Any, events: Any) -> None:
    run = make_run(sac(total=60, train_freq=2), {"id": "Point-v0"})
    trainer = build(run, contribute(run))
    seen = events(at=lambda steps: True, every=15)
    trainer.fit(seen)
    assert seen.boundaries == [16, 32, 48, 60]


def test_a_finished_run_goes_on_with_more_steps(
    make_run: Any, contribute: Any, train: Any, events: Any, same: Any
) -> None:
    short, long = make_run(ppo(96), POINTS), make_run(ppo(192), POINTS)
    finished = train(short)
    saved = finished.state_dict()
    nothing_left = build(short, contribute(short))
    nothing_left.load_state_dict(saved)
    seen = events()
    nothing_left.fit(seen)
    assert (seen.started, nothing_left.native.num_timesteps) == (1, 96)
    assert same(nothing_left.native, finished.native)
    longer = build(long, contribute(long))
    longer.load_state_dict(saved)
    longer.fit(events())
    assert longer.native.num_timesteps == 192
    assert same(longer.native, train(long).native)


def test_schedules_follow_the_whole_run_also_after_a_resume(
    make_run: Any, contribute: Any, events: Any, train: Any, same: Any
) -> None:
    run = make_run(ppo(192, learning_rate={"linear": [1e-2, 1e-4]}), POINTS)
    first = build(run, contribute(run))
    first.fit(events(at=lambda steps: False, every=96))
    saved = first.state_dict()  # before another model seeds the generators that all models share
    second = build(run, contribute(run))
    second.load_state_dict(saved)
    second.fit(events())
    assert same(second.native, train(run).native)


# ---- rollouts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", ["Point-v0", "PointDiscrete-v0", "PointDict-v0"])
def test_a_rollout_is_shown_before_its_update(env: str, make_run: Any, contribute: Any, events: Any) -> None:
    run = make_run(ppo(32), {"id": env, "n_envs": 2})
    trainer = build(run, contribute(run, Terms()))

    class Looking(events):  # type: ignore[misc]
        def rollout_end(self, rollout: Any) -> None:
            super().rollout_end(rollout)
            obs = rollout.obs
            assert rollout.terms.shape == (16, 2, 2)
            assert rollout.columns == ("env.reward", "terms.speed")
            assert rollout.rewards.shape == rollout.values.shape == rollout.advantages.shape == (16, 2)
            assert rollout.last_dones.shape == (2,)
            flat = (
                {k: torch.as_tensor(v).flatten(0, 1) for k, v in obs.items()}
                if isinstance(obs, dict)
                else torch.as_tensor(obs).flatten(0, 1)
            )
            log_prob = rollout.log_prob(flat, torch.as_tensor(rollout.actions).flatten(0, 1))
            stored = torch.as_tensor(trainer.native.rollout_buffer.log_probs).flatten()
            assert log_prob.detach() == pytest.approx(stored, abs=1e-5)

    trainer.fit(Looking(rollouts=True))


@pytest.mark.parametrize("env", ["Point-v0", "PointDiscrete-v0"])
def test_log_probabilities_can_be_transformed_and_the_policy_copied_afterwards(
    env: str, make_run: Any, contribute: Any, events: Any
) -> None:
    run = make_run(ppo(32), {"id": env, "n_envs": 2})
    trainer = build(run, contribute(run))

    class Transforming(events):  # type: ignore[misc]
        def rollout_end(self, rollout: Any) -> None:
            super().rollout_end(rollout)
            obs, actions = torch.as_tensor(rollout.obs).flatten(0, 1), torch.as_tensor(rollout.actions).flatten(0, 1)
            weights = {name: value.detach() for name, value in rollout.log_prob.named_parameters()}

            def log_prob(parameters: Any) -> Any:
                return torch.func.functional_call(rollout.log_prob, parameters, (obs, actions))

            direction = {name: torch.ones_like(value) for name, value in weights.items()}
            _, slope = torch.func.jvp(log_prob, (weights,), (direction,))
            assert slope.shape == (32,)
            assert slope.abs().max() > 0
            with pytest.raises(RuntimeError):
                copy.deepcopy(trainer.native.policy)
            rollout.after_transforms()
            copy.deepcopy(trainer.native.policy)

    trainer.fit(Transforming(rollouts=True))


@pytest.mark.parametrize(
    ("trainer", "env", "reason"),
    [
        (
            {"algo": "recurrent_ppo", "args": {**ROLLOUTS, "policy_kwargs": {"lstm_hidden_size": 8}}},
            "Point-v0",
            "a recurrent policy also needs its hidden states",
        ),
        (
            {"algo": "maskable_ppo", "args": ROLLOUTS},
            "PointDiscrete-v0",
            "a maskable policy also needs the action masks",
        ),
        (
            {"algo": "ppo", "args": {**ROLLOUTS, "use_sde": True}},
            "Point-v0",
            "with gSDE it also depends on the exploration noise of the rollout",
        ),
    ],
)
def test_where_there_is_no_log_probability_the_reason_is_given(
    trainer: Any, env: str, reason: str, make_run: Any, train: Any, events: Any
) -> None:
    seen = events(rollouts=True)
    train(make_run({**trainer, "total_timesteps": 32}, {"id": env, "n_envs": 2}), events=seen)
    rollout = seen.shown[0]
    with pytest.raises(BindingError) as raised:
        rollout.log_prob(None, torch.zeros(1))
    assert raised.value.what == f"no log-probability of stored actions: {reason}"
    rollout.after_transforms()


# ---- evaluation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [None, {"obs": True}])
@pytest.mark.parametrize("trainer", [ppo(), sac()])
def test_evaluation_counts_as_evaluate_policy_does(trainer: Any, normalize: Any, make_run: Any, train: Any) -> None:
    model = train(made := make_run(trainer, {**POINTS, "normalize": normalize}))
    own = model.evaluate(5, seed=11)
    env: Any = make_vec_env("Point-v0", n_envs=2, seed=11)
    if normalize:
        env = VecNormalize(env, training=False, norm_reward=False)
        env.obs_rms = model.native.get_vec_normalize_env().obs_rms
    returns, lengths = evaluate_policy(model.native, env, 5, return_episode_rewards=True)
    assert own.returns == pytest.approx(returns, abs=1e-4)
    assert own.lengths.tolist() == lengths
    assert own.seed == 11
    assert made


class Careless(gym.Wrapper):
    """Draws from every generator that is not its own."""

    def step(self, action: Any) -> Any:
        random.random(), np.random.random(), torch.rand(1)
        return self.env.step(action)


def test_evaluation_leaves_everything_as_it_was(
    make_run: Any, contribute: Any, events: Any, train: Any, same: Any
) -> None:
    gym.register("Careless-v0", entry_point=lambda **kwargs: Careless(gym.make("Point-v0", **kwargs)))
    run = make_run(ppo(), {**POINTS, "id": "Careless-v0", "normalize": {"obs": True}})
    trainer = build(run, contribute(run, Terms()))

    def look(steps: int) -> bool:
        before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
        trainer.evaluate(3, seed=steps)
        after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
        assert before[:2] == after[:2]
        assert torch.equal(before[2], after[2])
        return True

    trainer.fit(events(at=look, every=1))
    assert same(trainer.native, train(run, Terms()).native)


def test_an_observer_sees_the_steps_that_count_and_the_batch_shrinks(make_run: Any, train: Any) -> None:
    trainer = train(make_run(ppo(), {**POINTS, "n_envs": 3, "normalize": {"obs": True}}))
    batches: list[dict[str, Any]] = []

    def observe(batch: StepBatch) -> None:
        rows = [info["env_index"] for info in batch.infos]
        batches.append(
            {name: np.copy(getattr(batch, name)) for name in StepBatch.__slots__ if name != "infos"} | {"rows": rows}
        )
        assert batch.info("speed") == pytest.approx(batch.next_obs[:, 1], abs=1e-6)

    evaluation = trainer.evaluate(4, 7, observe)
    assert [batch["rows"] for batch in batches] == [[0, 1, 2]] * 25 + [[2]] * 25
    assert sum(len(batch["rows"]) for batch in batches) == evaluation.lengths.sum() == 100
    assert evaluation.env_steps == 150
    assert batches[24]["dones"].all()
    assert batches[24]["timeouts"].all()
    assert sum(batch["rewards"].sum() for batch in batches) == pytest.approx(evaluation.returns.sum())
    assert (batches[0]["next_obs"] == batches[1]["obs"]).all()
    assert not (batches[24]["next_obs"][2:] == batches[25]["obs"]).any()


# ---- reset and warm start ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trainer", [ppo(), sac(), sac(ent_coef=0.1), {**ppo(), "algo": "recurrent_ppo"}, ppo(use_sde=True)]
)
def test_a_reset_policy_is_fresh_under_its_seed_and_the_rest_stays(
    trainer: Any, make_run: Any, contribute: Any, events: Any
) -> None:
    run = make_run(trainer, {**POINTS, "normalize": {"obs": True}})
    built = build(run, contribute(run, Terms()))
    model = built.native
    initial = [value.detach().clone() for value in model.policy.parameters()]
    drawn: list[Any] = []
    starts: list[Any] = []

    def reset(steps: int) -> bool:
        statistics, buffer, generator = (
            model.get_vec_normalize_env().obs_rms.mean.copy(),
            getattr(model, "replay_buffer", None),
            torch.get_rng_state(),
        )
        count = 0 if buffer is None else buffer.pos
        for seed in (5, 5, 6):
            built.reset_policy(seed)
            drawn.append([value.detach().clone() for value in model.policy.parameters()])
            starts.append(np.copy(model._last_original_obs))
        assert not (starts[0] == starts[1]).any()  # the environments go on drawing from their own generators
        assert torch.equal(torch.get_rng_state(), generator) or model.use_sde
        assert model.num_timesteps == steps
        assert (
            not model.policy.optimizer.state if hasattr(model.policy, "optimizer") else not model.actor.optimizer.state
        )
        assert model.get_vec_normalize_env().obs_rms.count > 1
        assert statistics.shape == model.get_vec_normalize_env().obs_rms.mean.shape
        assert buffer is getattr(model, "replay_buffer", None)
        assert buffer is None or buffer.pos == count
        assert model._last_episode_starts.all()
        if hasattr(model, "log_ent_coef") and model.log_ent_coef is not None:
            assert model.log_ent_coef.item() == 0.0
            assert model.actor is model.policy.actor
        return False

    built.fit(events(at=reset, every=32))
    first, second, third = drawn
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, third, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, initial, strict=True))
    assert model.seed == 0


@pytest.mark.parametrize("section", [ppo(64), sac(60), {**ppo(64), "algo": "ars", "args": {"n_delta": 2}}])
def test_a_run_that_was_stopped_before_it_began_trains_nothing(
    section: Any, make_run: Any, contribute: Any, events: Any
) -> None:
    run = make_run(section, POINTS)
    trainer = build(run, contribute(run))
    seen = events()
    seen.goes_on = False
    trainer.fit(seen)
    assert (seen.started, trainer.native.num_timesteps) == (1, 0)


@pytest.mark.parametrize("section", [ppo(64), sac(60)])
def test_a_policy_that_was_kept_can_be_put_back(section: Any, make_run: Any, contribute: Any, events: Any) -> None:
    run = make_run(section, {**POINTS, "normalize": {"obs": True}})
    trainer = build(run, contribute(run))
    kept: list[Any] = []

    def at(steps: int) -> bool:
        if not kept:
            kept.append(trainer.policy_state())
            before.append({name: value.clone() for name, value in trainer.native.policy.state_dict().items()})
        return True

    before: list[Any] = []
    trainer.fit(events(at=at, every=32))
    model = trainer.native
    statistics = model.get_vec_normalize_env().obs_rms
    assert any(not torch.equal(value, before[0][name]) for name, value in model.policy.state_dict().items())
    count = statistics.count
    trainer.load_policy(kept[0])
    assert all(torch.equal(value, before[0][name]) for name, value in model.policy.state_dict().items())
    assert statistics.count < count


def test_training_goes_on_after_a_reset(make_run: Any, contribute: Any, events: Any) -> None:
    for section in (ppo(192), sac(60)):
        run = make_run(section, POINTS)
        trainer = build(run, contribute(run, Terms()))
        trainer.fit(events(at=lambda steps, trainer=trainer: trainer.reset_policy(steps) or True, every=32))
        assert trainer.native.num_timesteps >= section["total_timesteps"]


def test_a_warm_start_takes_the_policy_and_the_statistics_only(
    make_run: Any, contribute: Any, train: Any, same: Any
) -> None:
    run = make_run(ppo(), {**POINTS, "normalize": {"obs": True}})
    old = train(run)
    new = build(run, contribute(run))
    new.load_policy(old.state_dict())
    assert same(new.native, old.native)
    assert new.native.num_timesteps == 0
    assert (new.native.get_vec_normalize_env().obs_rms.mean == old.native.get_vec_normalize_env().obs_rms.mean).all()


# ---- export --------------------------------------------------------------------------------------------------------


def test_the_export_is_plain_stable_baselines3(make_run: Any, train: Any, tmp_path: Path, same: Any) -> None:
    trainer = train(make_run(ppo(), {**POINTS, "normalize": {"obs": True}}), Terms())
    path = trainer.export(tmp_path / "native")
    assert path == tmp_path / "native" / "model.zip"
    assert same(PPO.load(path), trainer.native)
    data = PPO.load(path).__dict__
    assert not [name for name, value in data.items() if "budwood" in type(value).__module__]
    env = VecNormalize.load(str(tmp_path / "native" / "vecnormalize.pkl"), make_vec_env("Point-v0"))
    assert (env.obs_rms.mean == trainer.native.get_vec_normalize_env().obs_rms.mean).all()
    assert json.loads((tmp_path / "native" / "terms.json").read_text()) == [
        {"name": "env.reward", "declared_weight": 1.0},
        {"name": "terms.speed", "declared_weight": 0.1},
    ]
    assert b"budwood" not in path.read_bytes()


def test_an_off_policy_export_too(make_run: Any, train: Any, tmp_path: Path, same: Any) -> None:
    trainer = train(make_run(sac(), {"id": "Point-v0"}), Terms())
    assert same(SAC.load(trainer.export(tmp_path)), trainer.native)
    assert isinstance(trainer.native.env.action_space, gym.spaces.Box)


@pytest.mark.parametrize(
    ("section", "terms", "expected"),
    [
        ({}, False, DummyVecEnv),
        ({}, True, FastVecEnv),
        ({"fast": False}, True, DummyVecEnv),
        ({"fast": True}, False, FastVecEnv),
    ],
)
def test_infos_are_copied_less_where_reward_terms_are_bound(
    section: Any, terms: bool, expected: type, make_run: Any, contribute: Any
) -> None:
    run = make_run(ppo(), {**POINTS, **section})
    built = build(run, contribute(run, *([Terms()] if terms else [])))
    assert type(built.native.env.unwrapped) is expected

"""Environments: how they are made, seeded and wrapped."""

from __future__ import annotations

from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from budwood.api import hookimpl
from budwood_sb3 import envs
from budwood_sb3.config import EnvConfig
from budwood_sb3.fast import FastVecEnv


def config(**section: Any) -> EnvConfig:
    return EnvConfig.model_validate({"id": "Point-v0", "n_envs": 2, **section})


def rolled(venv: Any, count: int = 60) -> list[Any]:
    rng = np.random.default_rng(0)
    obs = venv.reset()
    history = [obs]
    for _ in range(count):
        obs, reward, dones, infos = venv.step(rng.uniform(-1, 1, (venv.num_envs, 1)).astype(np.float32))
        last = [info.get("terminal_observation") for info in infos]
        history.append((obs, reward, dones, last, [info.get("TimeLimit.truncated") for info in infos]))
    return history


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", ["Point-v0", "PointDict-v0"])
def test_it_is_the_one_of_make_vec_env(fast: bool, name: str) -> None:
    own = envs.make(config(id=name, fast=fast), seed=3)
    assert type(own) is (FastVecEnv if fast else DummyVecEnv)
    np.testing.assert_equal(rolled(own), rolled(make_vec_env(name, n_envs=2, seed=3)))


def test_what_the_fast_one_returns_is_not_changed_by_later_steps() -> None:
    venv = envs.make(config(fast=True), seed=3)
    history = rolled(venv, 5)
    before = [np.copy(entry[0]) for entry in history[1:]]
    venv.step(np.ones((2, 1), np.float32))
    np.testing.assert_equal([entry[0] for entry in history[1:]], before)


def test_module_and_class_as_well_as_module_and_id() -> None:
    assert envs.make(config(id="gymnasium.envs.classic_control:PendulumEnv"), 0).observation_space.shape == (3,)
    assert envs.make(config(id="gymnasium.envs.classic_control:Pendulum-v1"), 0).observation_space.shape == (3,)


class Doubled(gym.RewardWrapper):
    def reward(self, reward: Any) -> float:
        return 2 * float(reward)


def test_a_plugin_wraps_outside_of_monitor_for_both_roles() -> None:
    roles = []

    def wrap(factory: Any, role: str) -> Any:
        roles.append(role)
        return lambda: Doubled(factory())

    venv: Any = envs.make(config(), 0, wrap=wrap)
    envs.make(config(), 0, "eval", wrap=wrap)
    assert roles == ["train", "train", "eval", "eval"]
    assert isinstance(venv.envs[0], Doubled)
    assert isinstance(venv.envs[0].env, Monitor)
    venv.reset()
    total = 0.0
    for _ in range(25):
        _, rewards, _, infos = venv.step(np.zeros((2, 1), np.float32))
        total += float(rewards[0])
    assert infos[0]["episode"]["r"] == pytest.approx(total / 2, rel=1e-5)


def test_an_environment_that_a_plugin_puts_in_the_place_gets_a_monitor(point: Any) -> None:
    venv: Any = envs.make(config(), 0, wrap=lambda factory, role: lambda: gym.wrappers.TimeLimit(point(), 5))
    assert isinstance(venv.envs[0], Monitor)
    assert venv.envs[0].get_wrapper_attr("_max_episode_steps") == 5


class Wraps:
    @hookimpl(wrapper=True)
    def build_env(self, run: Any, role: str) -> Any:
        inner = yield
        return lambda: Doubled(inner())


def test_what_plugins_wrap_can_be_sent_to_a_subprocess(make_run: Any, contribute: Any) -> None:
    wrap = contribute(make_run({"algo": "ppo", "total_timesteps": 1}, {"id": "Point-v0"}), Wraps()).wrap_env
    sent = cloudpickle.loads(cloudpickle.dumps(envs._Finish(wrap, "train")))
    env = sent(Monitor(gym.make("Point-v0")))
    assert type(env).__name__ == "Doubled"


def test_subprocesses_step_the_same_environments() -> None:
    """Their rewards are float64, where DummyVecEnv rounds to float32."""
    section = {"id": "Pendulum-v1", "n_envs": 2}
    subproc = envs.make(config(**section, vec="subproc"), 3)
    dummy = envs.make(config(**section), 3)
    try:
        for (obs, reward, *_), (expected, expected_reward, *_) in zip(
            rolled(subproc, 10)[1:], rolled(dummy, 10)[1:], strict=True
        ):
            assert (obs == expected).all()
            assert (reward.astype(np.float32) == expected_reward).all()
    finally:
        subproc.close()


class Reusing(gym.Env[Any, Any]):
    """Writes every step into the info that it has returned before."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self) -> None:
        self.info: dict[str, Any] = {"count": 0}

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.info["count"] += 1
        return np.zeros(1, np.float32), 0.0, False, False, self.info


def test_an_info_that_the_environment_reuses_is_not_changed_after_the_fact() -> None:
    venv = FastVecEnv([Reusing])
    venv.reset()
    first, second = [venv.step(np.zeros((1, 1)))[3][0] for _ in range(2)]
    assert (first["count"], second["count"]) == (1, 2)


def test_a_dead_process_of_an_environment_is_named_whatever_is_asked_next() -> None:
    import os
    import signal

    import gymnasium as gym

    from budwood.api import ContributionError
    from budwood_sb3.workers import WorkerVecEnv

    env = WorkerVecEnv([lambda: gym.make("CartPole-v1")] * 2)
    try:
        os.kill(env.processes[1].pid, signal.SIGKILL)
        env.processes[1].join()
        with pytest.raises(ContributionError, match="environment 1 with exit code -9"):
            env.has_attr("spec")
        with pytest.raises(ContributionError, match="environment 1 with exit code -9"):
            env.step([0, 0])
    finally:
        env.close()
    assert not any(process.is_alive() for process in env.processes)

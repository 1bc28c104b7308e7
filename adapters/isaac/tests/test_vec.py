"""A simulation as a VecEnv: the reference is the bare environment, stepped beside it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv
from stand_in import AUTHOR, LIMIT, StandIn

from budwood.api import ConfigError, ContributionError
from budwood_isaac.simulation import Simulation
from budwood_isaac.vec import IsaacVecEnv


def vec(n: int = 3, **options: Any) -> IsaacVecEnv:
    return IsaacVecEnv(Simulation(StandIn(n, **options)), "Stand-In")


def pushes(steps: int, n: int = 3) -> Any:
    return np.random.default_rng(0).uniform(-1, 1, (steps, n, 1)).astype(np.float32)


def test_episodes_are_those_of_the_environment() -> None:
    venv, bare = vec(), StandIn()
    venv.seed(7)
    assert (venv.reset() == bare.reset(seed=7)[0]["policy"].numpy()).all()
    returns, lengths, falls, limits = np.zeros(3), np.zeros(3, dtype=int), 0, 0
    for push in pushes(60):
        obs, rewards, dones, infos = venv.step(push)
        own, reward, fallen, timed_out, extras = bare.step(torch.from_numpy(push))
        assert (obs == own["policy"].numpy()).all()
        assert (rewards == reward.numpy()).all()
        assert rewards.dtype == np.float32
        assert (dones == (fallen | timed_out).numpy()).all()
        returns += rewards
        lengths += 1
        for i in range(3):
            if not dones[i]:
                assert infos[i] == {}
                continue
            assert (infos[i]["terminal_observation"] == extras["final_obs"]["policy"][i].numpy()).all()
            assert infos[i]["TimeLimit.truncated"] == bool(timed_out[i] and not fallen[i])
            assert infos[i]["episode"]["r"] == pytest.approx(returns[i], abs=1e-5)
            assert infos[i]["episode"]["l"] == lengths[i] <= LIMIT
            falls, limits = falls + bool(fallen[i]), limits + infos[i]["TimeLimit.truncated"]
            returns[i], lengths[i] = 0.0, 0
    assert falls > 5
    assert limits > 5


def test_what_was_returned_is_not_written_into_later() -> None:
    venv = vec()
    kept = [venv.reset()]
    copies = [kept[0].copy()]
    for push in pushes(3):
        obs, rewards, dones, _ = venv.step(push)
        for array in (obs, rewards, dones, *venv.info_arrays().values()):
            kept.append(array)
            copies.append(array.copy())
    assert all(np.array_equal(one, two) for one, two in zip(kept, copies, strict=True))


def test_info_arrays_are_the_terms() -> None:
    venv = vec()
    assert venv.author_weights == AUTHOR
    venv.reset()
    _, rewards, _, _ = venv.step(pushes(1)[0])
    arrays = venv.info_arrays()
    assert list(arrays) == [f"reward/{name}" for name in AUTHOR]
    total = sum(abs(weight) * arrays[f"reward/{name}"] for name, weight in AUTHOR.items() if weight)
    assert total == pytest.approx(rewards, rel=1e-6)
    with pytest.raises(
        ContributionError, match=r"^the task Stand-In gives no info key 'reward/alife'; it gives reward/"
    ):
        arrays["reward/alife"]


def test_direct_workflow_has_no_terms_and_says_what_to_do() -> None:
    venv = vec(managed=False)
    assert venv.author_weights is None
    venv.reset()
    _, rewards, _, _ = venv.step(np.zeros((3, 1), np.float32))
    assert (rewards < 1).all()
    with pytest.raises(ContributionError) as raised:
        venv.info_arrays()["reward/alive"]
    assert str(raised.value) == (
        "the task Stand-In has no reward manager (direct workflow) and computes its reward in one piece, so there is no "
        "'reward/alive' to read. Declare terms as functions of observations and actions, in a pack of a plugin of yours."
    )


def test_seeds_are_those_of_the_next_reset() -> None:
    venv = vec()
    venv.seed(1)
    first = venv.reset()
    assert not np.allclose(venv.reset(), first)
    venv.seed(1)
    assert (venv.reset() == first).all()


def test_observations_may_be_dicts() -> None:
    venv = vec(nested=True)
    venv.reset()
    for push in pushes(LIMIT):
        obs, _, dones, infos = venv.step(push)
    assert obs["age"].shape == (3, 1)
    last = infos[np.flatnonzero(dones)[0]]["terminal_observation"]
    assert last["age"].shape == (1,)
    assert venv.observation_space["age"].contains(last["age"])


def test_unbounded_actions_become_those_of_isaac_labs_own_wrapper() -> None:
    assert vec().action_space == gym.spaces.Box(-1.0, 1.0, (1,), np.float32)


def test_a_task_without_a_policy_group_is_refused() -> None:
    env = StandIn()
    env.single_observation_space = gym.spaces.Dict({"robot_1": gym.spaces.Box(0, 1, (1,))})
    with pytest.raises(ConfigError, match=r"^env.id: its observations are the groups robot_1, and a policy acts on"):
        Simulation(env)


def test_it_is_a_vecenv_that_stable_baselines3_trains_on() -> None:
    venv: VecEnv = vec()
    model = PPO("MlpPolicy", venv, n_steps=16, batch_size=16, seed=0, device="cpu").learn(96)
    assert 1 <= np.mean([episode["l"] for episode in model.ep_info_buffer]) <= LIMIT  # type: ignore[union-attr]
    assert venv.get_attr("render_mode") == [None] * 3
    with pytest.raises(AttributeError, match="show no attribute 'scene'"):
        venv.get_attr("scene")

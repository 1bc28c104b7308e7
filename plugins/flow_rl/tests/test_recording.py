"""Recording policies that Stable-Baselines3 trained, against its own rollouts, evaluations and files."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DDPG, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecNormalize

from budwood.api import ConfigError
from budwood_flow_rl import recording
from budwood_flow_rl.recording import Expert

torch.set_num_threads(1)


class Track(gym.Env):
    """Ends at |x| > 1.5 (terminated) or after 13 steps (truncated); reward 1 a step; actions within +-2."""

    observation_space = gym.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1, 1), 0
        return np.array([self.x, self.t], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.x += 0.3 * float(action[0])
        terminated = abs(self.x) > 1.5
        return np.array([self.x, self.t], np.float32), 1.0, terminated, self.t >= 13 and not terminated, {}


ENV = "track_for_tests:Track"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("track_for_tests")
    module.Track = Track  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "track_for_tests", module)


def expert(model: Any, normalise: Any = recording._raw) -> Expert:
    return Expert(model, ENV, {}, normalise, "a test")


def ppo(**arguments: Any) -> PPO:
    return PPO("MlpPolicy", make_vec_env(Track, n_envs=2), seed=0, n_steps=8, batch_size=16, device="cpu", **arguments)


def test_rows_follow_the_environment_and_episodes_end_as_it_says() -> None:
    demos = recording.record(expert(ppo()), 100, n_envs=3, seed=5)
    assert len(demos) == 102, "the next multiple of three"
    assert np.abs(demos.actions).max() <= 2.0
    for begin, end, terminated, truncated in zip(
        demos.offsets[:-1], demos.offsets[1:], demos.terminated, demos.truncated, strict=True
    ):
        seen, acted = demos.observations[begin:end], demos.actions[begin:end]
        assert seen[:, 1].tolist() == list(range(end - begin)), "time counts up from a reset"
        assert seen[1:, 0] == pytest.approx(seen[:-1, 0] + 0.3 * acted[:-1, 0], abs=1e-5), "actions are those executed"
        last = seen[-1, 0] + 0.3 * acted[-1, 0]
        assert terminated == (abs(last) > 1.5)
        assert truncated == (end - begin == 13 and not terminated)
    assert demos.finished.sum() >= len(demos.lengths) - 3
    assert demos.returns is not None
    assert demos.returns.tolist() == demos.lengths.tolist()
    assert demos.about["source"] == "a test"
    assert demos.about["versions"]["stable-baselines3"] == "2.9.2"


def test_the_seed_decides_everything() -> None:
    first, again, other = (recording.record(expert(ppo()), 60, n_envs=2, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.observations, again.observations)
    assert np.array_equal(first.actions, again.actions)
    assert not np.array_equal(first.actions, other.actions)


def test_exploration_is_that_of_ppo_while_it_collects() -> None:
    """The same seed and environments: what PPO put into its rollout buffer, clipped, is what is recorded."""
    model = ppo()
    demos = recording.record(expert(model), 16, n_envs=2, seed=9)
    from stable_baselines3.common.utils import set_random_seed

    trained = ppo()
    trained.env.seed(9)
    trained._last_obs = None
    trained._setup_learn(16)
    set_random_seed(9)
    from stable_baselines3.common.callbacks import CallbackList

    callback = trained._init_callback(CallbackList([]))
    trained.collect_rollouts(trained.env, callback, trained.rollout_buffer, 8)
    buffer = trained.rollout_buffer
    first = np.concatenate([np.clip(buffer.actions[:, i], -2, 2) for i in range(2)])
    assert np.array_equal(demos.actions, first)
    assert np.array_equal(demos.observations, np.concatenate([buffer.observations[:, i] for i in range(2)]))


def test_deterministic_actions_are_predictions() -> None:
    model = ppo()
    demos = recording.record(expert(model), 40, n_envs=2, deterministic=True)
    assert np.allclose(demos.actions, model.predict(demos.observations, deterministic=True)[0], atol=1e-6)
    noisy = recording.record(expert(model), 40, n_envs=2)
    assert not np.allclose(noisy.actions, model.predict(noisy.observations, deterministic=True)[0], atol=1e-2)


def test_action_noise_is_added_in_the_scale_of_minus_one_to_one() -> None:
    noise = NormalActionNoise(np.zeros(1), np.full(1, 0.1))
    model = DDPG("MlpPolicy", Track(), action_noise=noise, seed=0, device="cpu")
    demos = recording.record(expert(model), 400, n_envs=4)
    spread = demos.actions - model.predict(demos.observations, deterministic=True)[0]
    assert spread.std() == pytest.approx(0.2, rel=0.2), "0.1 of a range twice as wide"
    quiet = recording.record(expert(model), 40, n_envs=4, deterministic=True)
    assert np.allclose(quiet.actions, model.predict(quiet.observations, deterministic=True)[0], atol=1e-6)


def test_gsde_draws_new_matrices_as_often_as_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ppo(use_sde=True, sde_sample_freq=4)
    drawn: list[int] = []
    reset = model.policy.reset_noise
    monkeypatch.setattr(model.policy, "reset_noise", lambda n: (drawn.append(n), reset(n)))
    recording.record(expert(model), 20, n_envs=2)
    assert drawn == [2, 2, 2], "at steps 0, 4 and 8"
    recording.record(expert(model), 20, n_envs=2, deterministic=True)
    assert drawn == [2, 2, 2]


def test_normalised_observations_reach_the_policy_and_raw_ones_the_file(tmp_path: Path) -> None:
    venv = VecNormalize(make_vec_env(Track, n_envs=2, seed=0), norm_reward=True)
    model = PPO("MlpPolicy", venv, n_steps=64, batch_size=64, seed=0, device="cpu").learn(256)
    model.save(tmp_path / "model.zip")
    venv.save(str(tmp_path / "vecnormalize.pkl"))
    loaded = recording.of_zip(tmp_path / "model.zip", "ppo", ENV, {}, tmp_path / "vecnormalize.pkl", trust=True)
    assert loaded.source.startswith("model.zip (PPO, sha256 ")
    demos = recording.record(loaded, 30, n_envs=2, deterministic=True)
    wanted, _ = model.predict(venv.normalize_obs(demos.observations), deterministic=True)
    assert np.allclose(demos.actions, wanted, atol=1e-5)
    assert demos.rewards is not None
    assert (demos.rewards == 1).all()
    assert not np.allclose(wanted, model.predict(demos.observations, deterministic=True)[0], atol=1e-3)


def test_a_zip_needs_trust_before_a_byte_of_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.zip").write_bytes(b"not even a zip")
    with pytest.raises(ConfigError, match=r"it contains pickles.*--trust"):
        recording.of_zip(tmp_path / "model.zip", "ppo", ENV, {}, trust=False)
    with pytest.raises(ConfigError, match="it cannot be loaded as PPO"):
        recording.of_zip(tmp_path / "model.zip", "ppo", ENV, {}, trust=True)


def test_a_zip_of_another_algorithm_is_told(tmp_path: Path) -> None:
    SAC("MlpPolicy", Track(), buffer_size=10, device="cpu").save(tmp_path / "model.zip")
    with pytest.raises(ConfigError, match="it cannot be loaded as PPO"):
        recording.of_zip(tmp_path / "model.zip", "ppo", ENV, {}, trust=True)
    assert len(recording.record(recording.of_zip(tmp_path / "model.zip", "sac", ENV, {}, trust=True), 20)) == 24


@pytest.mark.parametrize(
    ("env", "args", "said"),
    [
        ("Nothing-v0", {}, "Nothing-v0 cannot be made"),
        ("nowhere_at_all:Env", {}, "cannot import nowhere_at_all"),
        (ENV, {"speed": 3}, 'cannot be made with {"speed": 3}'),
        ("CartPole-v1", {}, "the actions of CartPole-v1 are Discrete"),
        ("Pendulum-v1", {}, "the policy was trained with the observation space"),
    ],
)
def test_environments_that_cannot_be_are_told(env: str, args: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        recording.record(Expert(ppo(), env, args, recording._raw, "a test"), 10)
    assert said in str(error.value)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import budwood

    output = tmp_path_factory.mktemp("runs")
    result = budwood.run(
        {
            "name": "pendulum",
            "output": str(output),
            "trainer": {
                "kind": "sb3",
                "algo": "ppo",
                "total_timesteps": 512,
                "args": {"n_steps": 64, "batch_size": 64},
            },
            "env": {"id": "Pendulum-v1", "n_envs": 2, "args": {"g": 9.0}, "normalize": {"obs": True}},
            "checkpoint": {"every": 256, "keep": 5},
            "tracking": {"enabled": False},
        }
    )
    return Path(result.paths["folder"])


def test_a_run_is_recorded_as_its_own_evaluation_acts(run_folder: Path) -> None:
    from budwood.runs import evaluate

    with recording.of_run(str(run_folder)) as found:
        assert (found.env_id, found.env_args) == ("Pendulum-v1", {"g": 9.0})
        demos = recording.record(found, 800, n_envs=2, seed=20_000, deterministic=True)
    evaluation, checkpoint = evaluate(str(run_folder), episodes=4, seed=20_000)
    assert demos.returns is not None
    assert sorted(demos.returns) == pytest.approx(sorted(evaluation.returns), rel=1e-4)
    assert demos.truncated.all()
    assert demos.about["source"] == f"run {run_folder.name}, {checkpoint.name}"


def test_an_earlier_checkpoint_can_be_recorded(run_folder: Path) -> None:
    from budwood.api import CheckpointError

    with recording.of_run(str(run_folder), 256) as found:
        assert "step_000000000256" in found.source
        early = recording.record(found, 20, n_envs=2, deterministic=True)
    with recording.of_run(str(run_folder)) as found:
        late = recording.record(found, 20, n_envs=2, deterministic=True)
    assert not np.array_equal(early.actions, late.actions)
    with (
        pytest.raises(CheckpointError, match=r"no checkpoint of step 100.*256, 512"),
        recording.of_run(str(run_folder), 100),
    ):
        pass


def test_the_export_of_a_run_records_as_the_run_itself(run_folder: Path) -> None:
    zipped = run_folder / "export" / "model.zip"
    pkl = zipped.with_name("vecnormalize.pkl")
    loaded = recording.of_zip(zipped, "ppo", "Pendulum-v1", {"g": 9.0}, pkl, trust=True)
    from_zip = recording.record(loaded, 100, n_envs=2, seed=3)
    with recording.of_run(str(run_folder)) as found:
        from_run = recording.record(found, 100, n_envs=2, seed=3)
    assert np.array_equal(from_zip.actions, from_run.actions)
    assert np.array_equal(from_zip.observations, from_run.observations)

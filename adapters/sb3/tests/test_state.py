"""A run that is interrupted at a boundary and continued from disk is the run that was not: parameters, optimisers, logged
values, buffers, statistics, generators and environments, bit for bit, for every algorithm, in plain Stable-Baselines3."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3 as sb3
import torch
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import VecNormalize

from budwood.api import CheckpointError, storable
from budwood.checkpoint import Checkpoints
from budwood_sb3 import state as states

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def small(**more: Any) -> dict[str, Any]:
    """Arguments for a small model; Stable-Baselines3 writes into ``policy_kwargs``, so each gets its own."""
    return {"policy_kwargs": {"net_arch": [16]}, "seed": 3, "device": "cpu", **more}


def rollouts(**more: Any) -> dict[str, Any]:
    return small(n_steps=32, **more)


def off(**more: Any) -> dict[str, Any]:
    return small(**{"learning_starts": 30, "batch_size": 16, "buffer_size": 500, **more})


CLOCKS = {"t", "episode_times", "start_time", "_num_timesteps_at_start"}


class Wandering(gym.Env):
    """Dict observations, and a state_dict of its own."""

    def __init__(self) -> None:
        box = gym.spaces.Box(-10, 10, (2,))
        self.observation_space = gym.spaces.Dict({"place": box, "goal": box})
        self.action_space = gym.spaces.Box(-1, 1, (2,))
        self.place, self.goal, self.steps = np.zeros((3, 2))

    def _observe(self) -> dict[str, Any]:
        return {"place": self.place.astype(np.float32), "goal": self.goal.astype(np.float32)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.normal(size=(2, 2))
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.place = self.place + 0.1 * action + self.np_random.normal(scale=0.01, size=2)
        self.steps += 1
        return (
            self._observe(),
            -float(np.abs(self.place - self.goal).sum()),
            False,
            self.steps == 17,
            {"is_success": True},
        )

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place, "goal": self.goal, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place, self.goal, self.steps = state["place"], state["goal"], state["steps"]


def venv(source: Any, n: int = 1, wrap: Callable = lambda venv: venv, **kwargs: Any) -> Any:
    return wrap(make_vec_env(source, n, seed=3, **kwargs))


def ou() -> ActionNoise:
    return OrnsteinUhlenbeckActionNoise(np.zeros(6), 0.3 * np.ones(6))


def masked() -> Any:
    return venv("CartPole-v1", 2, wrapper_class=lambda env: ActionMasker(env, lambda _: np.array([True, True])))


UNIT = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
CASES: dict[str, tuple[Callable[[], Any], int, int]] = {  # model, steps in all, boundary at which it is saved
    "ppo": (lambda: sb3.PPO("MlpPolicy", venv("HalfCheetah-v5", 8), batch_size=64, n_epochs=2, **rollouts()), 1280, 3),
    "ppo_gsde": (lambda: sb3.PPO("MlpPolicy", venv("Hopper-v5", 4), use_sde=True, **rollouts()), 640, 3),
    "ppo_gsde_often": (
        lambda: sb3.PPO("MlpPolicy", venv("Hopper-v5", 4), use_sde=True, sde_sample_freq=5, **rollouts()), 512, 2,
    ),
    "ppo_normalized": (lambda: sb3.PPO("MlpPolicy", venv("Hopper-v5", 4, VecNormalize), **rollouts()), 640, 3),
    "ppo_dict": (lambda: sb3.PPO("MultiInputPolicy", venv(Wandering, 2, VecNormalize), **rollouts()), 256, 2),
    "ppo_decaying": (
        lambda: sb3.PPO("MlpPolicy", venv("Hopper-v5"), learning_rate=lambda p: 1e-3 * p, clip_range=lambda p: p, **rollouts()),
        160, 3,
    ),
    "a2c": (lambda: sb3.A2C("MlpPolicy", venv("Pendulum-v1", 4), **small()), 400, 11),
    "sac": (lambda: sb3.SAC("MlpPolicy", venv("Hopper-v5"), **off()), 110, 70),
    "sac_before_learning": (lambda: sb3.SAC("MlpPolicy", venv("Hopper-v5"), **off()), 60, 20),
    "sac_fixed_gsde": (
        lambda: sb3.SAC("MlpPolicy", venv("Hopper-v5"), ent_coef=0.1, use_sde=True, sde_sample_freq=4, train_freq=8, **off()),
        130, 9,
    ),
    "sac_nstep_normalized": (lambda: sb3.SAC("MlpPolicy", venv("Hopper-v5", 2, VecNormalize), n_steps=3, **off()), 120, 40),
    "sac_dict": (lambda: sb3.SAC("MultiInputPolicy", venv(Wandering), **off()), 90, 60),
    "sac_full": (lambda: sb3.SAC("MlpPolicy", venv("Hopper-v5"), **off(buffer_size=50)), 110, 70),
    "td3_ou": (lambda: sb3.TD3("MlpPolicy", venv("HalfCheetah-v5", 2), action_noise=ou(), **off()), 140, 45),
    "td3_episodes": (
        lambda: sb3.TD3("MlpPolicy", venv("Hopper-v5"), action_noise=NormalActionNoise(np.zeros(3), np.ones(3)),
                        train_freq=(1, "episode"), **off()), 220, 5,
    ),
    "ddpg": (lambda: sb3.DDPG("MlpPolicy", venv("HalfCheetah-v5"), action_noise=ou(), **off()), 90, 60),
    "dqn": (lambda: sb3.DQN("MlpPolicy", venv("CartPole-v1"), target_update_interval=50, **off()), 300, 40),
    "dqn_compact": (lambda: sb3.DQN("MlpPolicy", venv("CartPole-v1"), **off(buffer_size=100), **UNIT), 300, 60),
    "dqn_compact_filling": (lambda: sb3.DQN("MlpPolicy", venv("CartPole-v1"), **off(), **UNIT), 200, 40),
    "recurrent_ppo": (
        lambda: sb3_contrib.RecurrentPPO("MlpLstmPolicy", venv("Pendulum-v1", 2), n_epochs=2, batch_size=32, n_steps=32,
                                         policy_kwargs={"net_arch": [8], "lstm_hidden_size": 8}, seed=3), 320, 3,
    ),
    "maskable_ppo": (lambda: sb3_contrib.MaskablePPO("MlpPolicy", masked(), **rollouts()), 320, 3),
    "trpo": (lambda: sb3_contrib.TRPO("MlpPolicy", venv("Pendulum-v1", 2), batch_size=32, **rollouts()), 320, 3),
    "qrdqn": (lambda: sb3_contrib.QRDQN("MlpPolicy", venv("CartPole-v1"), target_update_interval=50, **off()), 300, 40),
    "tqc": (lambda: sb3_contrib.TQC("MlpPolicy", venv("Hopper-v5"), **off()), 80, 50),
    "crossq": (lambda: sb3_contrib.CrossQ("MlpPolicy", venv("Hopper-v5"), **off()), 80, 50),
}  # fmt: skip


class Rows(KVWriter):
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.rows.append((step, {key: value for key, value in key_values.items() if not key.startswith("time/")}))


class AtBoundary(BaseCallback):
    """Calls ``act`` at the ``at``-th start of a rollout."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        super().__init__()
        self.left, self.act = at, act

    def _on_rollout_start(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()

    def _on_step(self) -> bool:
        return True


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if key not in CLOCKS)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return same(a.detach().numpy(), b.detach().numpy())
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and np.shape(a) == np.shape(b) and a.tobytes() == b.tobytes()
    return a == b or (a != a and b != b)


def differences(a: Any, b: Any, place: str = "") -> list[str]:
    """Where two trees differ, for a readable failure."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for key in a if key not in CLOCKS for d in differences(a[key], b[key], f"{place}.{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i in range(len(a)) for d in differences(a[i], b[i], f"{place}[{i}]")]
    return [] if same(a, b) else [place]


def plain_attributes(model: Any) -> dict[str, Any]:
    """What the tables of the module may have missed: every attribute of the model and its buffers that is plain data."""
    buffer = getattr(model, "rollout_buffer", None) or model.replay_buffer
    found = {
        f"{type(owner).__name__}.{name}": value for owner in (model, buffer) for name, value in vars(owner).items()
    }
    return {name: value for name, value in found.items() if storable(value) and name.rpartition(".")[2] not in CLOCKS}


def scramble() -> None:
    random.seed(1234)
    np.random.seed(1234)
    torch.manual_seed(1234)


def learn(model: Any, steps: int, callback: BaseCallback | None = None, resumed: bool = False) -> Rows:
    rows = Rows()
    model.set_logger(Logger(None, [rows]))
    interval = 1 if hasattr(model, "rollout_buffer") else 4
    model.learn(steps, callback=callback, log_interval=interval, reset_num_timesteps=not resumed)
    return rows


def interrupted(make: Callable[[], Any], steps: int, at: int, folder: Path) -> tuple[Any, Rows, dict[str, Any]]:
    """A run to the end that saved itself on the way -> (model, log, what was saved, read back from disk)."""
    checkpoints, model = Checkpoints(folder, keep=1), make()
    save = AtBoundary(at, lambda: checkpoints.save(model.num_timesteps, states.model_state(model), {}))
    rows = learn(model, steps, save)
    found = checkpoints.latest()
    assert found is not None
    return model, rows, checkpoints.load(found[0])[0]


def resume(make: Callable[[], Any], steps: int, saved: dict[str, Any]) -> tuple[Any, Rows, list[str]]:
    model = make()
    scramble()
    notes = states.restore_model(model, saved)
    scramble()
    again = AtBoundary(1, lambda: states.restore_generators(model, saved))
    return model, learn(model, steps - model.num_timesteps, again, resumed=True), notes


@pytest.mark.parametrize("case", CASES)
def test_continues_bit_for_bit(case, tmp_path):
    make, steps, at = CASES[case]
    whole, rows, saved = interrupted(make, steps, at, tmp_path)
    steps_then = saved["counters"]["num_timesteps"]
    assert 0 < steps_then < whole.num_timesteps
    model, later_rows, notes = resume(make, steps, saved)
    assert notes == []
    assert model.num_timesteps == whole.num_timesteps
    final = [states.model_state(m, rollout_started=False) for m in (whole, model)]
    assert differences(*final) == []
    assert differences(plain_attributes(whole), plain_attributes(model)) == []
    expected = [row for row in rows.rows if row[0] > steps_then]
    assert differences({"rows": expected}, {"rows": later_rows.rows}) == []


@pytest.mark.parametrize("case", ["ppo_gsde", "sac_fixed_gsde", "td3_ou"])
def test_saving_changes_nothing(case, tmp_path):
    make, steps, at = CASES[case]
    saved, bare = interrupted(make, steps, at, tmp_path)[0], make()
    learn(bare, steps)
    assert differences(saved.get_parameters(), bare.get_parameters()) == []


@pytest.mark.parametrize("case", ["ppo_gsde", "sac_fixed_gsde", "a2c"])
def test_a_finished_run_goes_on_as_if_it_had_been_longer(case, tmp_path):
    """No schedule depends on the total here, so 2 x half is the whole."""
    make, steps, _ = CASES[case]
    whole = make()
    learn(whole, steps)
    half = make()
    learn(half, steps // 2)
    checkpoints = Checkpoints(tmp_path, keep=1)
    saved = checkpoints.load(checkpoints.save(0, states.model_state(half, rollout_started=False), {}))[0]
    model, _, _ = resume(make, whole.num_timesteps, saved)
    assert differences(whole.get_parameters(), model.get_parameters()) == []


@pytest.mark.parametrize(
    "leave_out", ["generators", "envs", "log", "noise", "exploration", "optimiser", "replay", "last"]
)
def test_every_part_is_needed(leave_out, tmp_path):
    """Break the feature: each part, replaced by that of a fresh model, must be noticed by the comparison."""
    case = {"noise": "td3_ou", "exploration": "ppo_gsde", "replay": "dqn"}.get(leave_out, "a2c")
    make, steps, at = CASES[case]
    whole, rows, saved = interrupted(make, steps, at, tmp_path)
    fresh = make()
    learn(fresh, 64)
    other = states.model_state(fresh)
    if leave_out == "optimiser":
        saved["parameters"]["policy.optimizer"] = other["parameters"]["policy.optimizer"]
    elif leave_out == "log":
        saved["log"] = {}
    else:
        saved[leave_out] = other[leave_out]
    model, later_rows, _ = resume(make, steps, saved)
    expected = [row for row in rows.rows if row[0] > saved["counters"]["num_timesteps"]]
    final = [states.model_state(m, rollout_started=False) for m in (whole, model)]
    assert differences(*final) or differences({"rows": expected}, {"rows": later_rows.rows})


class Unsavable(gym.Wrapper):
    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.anything = 0


def test_environments_that_cannot_be_saved_restart(tmp_path):
    def make() -> Any:
        return sb3.PPO("MlpPolicy", venv("Hopper-v5", 2, VecNormalize, wrapper_class=Unsavable), **rollouts())

    whole, _, saved = interrupted(make, 192, 3, tmp_path)
    ends = []
    for _ in range(2):  # the restart itself is reproducible
        model, _, notes = resume(make, 192, saved)
        ends.append(model.get_parameters())
    assert len(notes) == 1
    assert notes[0].startswith("The environments cannot save their state (")
    assert notes[0].endswith("Unsavable gives no state_dict): their episodes restart.")
    assert model.num_timesteps == whole.num_timesteps
    assert same(*ends)
    counts = [m.get_vec_normalize_env().obs_rms.count for m in (whole, model)]
    assert counts[1] == counts[0] + 2  # the statistics went on, and saw one more reset of both environments


@pytest.mark.parametrize("kind", ["nstep", "compact"])
def test_a_restart_ends_the_trajectory_in_the_replay_buffer(kind, tmp_path):
    def make() -> Any:
        env = venv("Pendulum-v1", wrapper_class=Unsavable)
        return sb3.SAC("MlpPolicy", env, **off(), **({"n_steps": 3} if kind == "nstep" else UNIT))

    _, _, saved = interrupted(make, 100, 70, tmp_path)
    model = make()
    states.restore_model(model, saved)
    buffer = model.replay_buffer
    flags = buffer.timeouts if kind == "nstep" else buffer.dones
    assert buffer.pos == 69
    assert flags[68].all()
    assert not flags[:68].any()


class Weighted(ReplayBuffer):
    """A buffer with arrays, numbers and objects of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weights = np.zeros((self.buffer_size, self.n_envs))
        self.total = 0.0
        self.index = {1, 2}

    def add(self, *args: Any) -> None:
        self.weights[self.pos] = self.total = self.total + 1.0
        super().add(*args)


def test_a_buffer_of_ones_own(tmp_path):
    def make() -> Any:
        return sb3.SAC("MlpPolicy", venv("Pendulum-v1"), replay_buffer_class=Weighted, **off())

    whole, _, saved = interrupted(make, 100, 70, tmp_path)
    assert saved["replay"]["arrays"]["observations"].shape[0] == 70
    model, _, notes = resume(make, 100, saved)
    assert notes == ["Weighted gives no state_dict: index of the replay buffer start anew."]
    assert same(whole.replay_buffer.weights, model.replay_buffer.weights)
    assert model.replay_buffer.total == 100.0


def test_without_the_replay_buffer():
    model = sb3.SAC("MlpPolicy", venv("Pendulum-v1"), **off())
    learn(model, 70)
    state = states.model_state(model, replay_buffer=False)
    assert state["replay"] is None
    assert state["notes"] == [
        "The checkpoint was made without the replay buffer (checkpoint.replay_buffer): it starts empty."
    ]


def test_hindsight_buffers_are_left_out_with_the_reason():
    from stable_baselines3.common.envs import BitFlippingEnv

    env = venv(lambda: BitFlippingEnv(4, continuous=True))
    model = sb3.SAC("MultiInputPolicy", env, replay_buffer_class=sb3.HerReplayBuffer, **off())
    learn(model, 30)
    notes = states.model_state(model)["notes"]
    assert notes[0].startswith("HerReplayBuffer keeps infos and a reference to its environments")


def test_unknown_action_noise_is_said_once():
    class Odd(ActionNoise):
        def __call__(self) -> np.ndarray:
            return np.zeros(1)

    model = sb3.TD3("MlpPolicy", venv("Pendulum-v1", 3), action_noise=Odd(), **off())
    learn(model, 3)
    assert states.model_state(model)["notes"] == ["Odd gives no state_dict: the action noise starts anew."]


def test_ars_goes_on_with_its_weights(tmp_path):
    def make() -> Any:
        return sb3_contrib.ARS("LinearPolicy", venv("CartPole-v1"), n_delta=2, seed=3)

    _, _, saved = interrupted(make, 3000, 3, tmp_path)
    model = make()
    notes = states.restore_model(model, saved)
    assert notes == [
        "ARS draws its perturbations before the only event it reports: the interrupted update is done anew."
    ]
    assert same(model.weights, saved["variables"]["weights"])
    assert model._n_updates == 2
    learn(model, 100, resumed=True)


def test_figures_in_the_log_are_left_out():
    model = sb3.PPO("MlpPolicy", venv("Pendulum-v1"), **rollouts())
    learn(model, 32)
    model.logger.record("plot", object())
    model.logger.record("train/loss", torch.tensor(0.5))
    state = states.model_state(model)
    assert state["log"]["name_to_value"]["train/loss"] == 0.5
    assert state["notes"] == ["Recorded, but not numbers or text, and so missing from one line of the log: plot."]


def test_another_algorithm_or_network_is_refused():
    saved = states.model_state(sb3.PPO("MlpPolicy", venv("Pendulum-v1"), **rollouts()))
    with pytest.raises(CheckpointError, match="the checkpoint is of PPO, the model is A2C"):
        states.restore_model(sb3.A2C("MlpPolicy", venv("Pendulum-v1"), **small()), saved)
    wider = rollouts(policy_kwargs={"net_arch": [17]})
    with pytest.raises(CheckpointError, match=r"the checkpoint's networks do not fit the model: Error"):
        states.restore_model(sb3.PPO("MlpPolicy", venv("Pendulum-v1"), **wider), saved)


def test_warm_start_takes_networks_and_observation_statistics_only():
    def make(wrap: Any = VecNormalize, **kwargs: Any) -> Any:
        return sb3.PPO("MlpPolicy", venv("Pendulum-v1", 2, wrap), **rollouts(**kwargs))

    trained, model = make(), make(seed=1)
    learn(trained, 128)
    saved = states.model_state(trained)
    states.load_policy(model, saved)
    assert differences(dict(trained.policy.state_dict()), dict(model.policy.state_dict())) == []
    assert same(trained.get_vec_normalize_env().obs_rms.mean, model.get_vec_normalize_env().obs_rms.mean)
    assert not same(trained.get_vec_normalize_env().ret_rms.var, model.get_vec_normalize_env().ret_rms.var)
    assert model.num_timesteps == 0
    assert model.policy.optimizer.state_dict()["state"] == {}

    with pytest.raises(CheckpointError, match=r"trained on normalised observations.*env\.normalize\.obs. to true"):
        states.load_policy(make(lambda env: env), saved)
    with pytest.raises(CheckpointError, match=r"trained on raw observations"):
        states.load_policy(make(), states.model_state(make(lambda env: env)))
    with pytest.raises(CheckpointError, match=r"the policy does not fit the model: Error"):
        states.load_policy(make(policy_kwargs={"net_arch": [9]}), saved)

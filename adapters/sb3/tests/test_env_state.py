"""A restored environment goes on to the bit; one that cannot be saved says why."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecVideoRecorder,
)

from budwood.api import CheckpointError
from budwood.checkpoint import Checkpoints
from budwood_sb3 import env_state

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

MUJOCO = [
    "HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid", "HumanoidStandup", "Swimmer", "Reacher", "Pusher",
    "InvertedPendulum", "InvertedDoublePendulum",
]  # fmt: skip
CONTROL = ["CartPole-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1"]
SAVABLE = [f"{name}-v5" for name in MUJOCO] + ["Hopper-v4", "Humanoid-v4", *CONTROL]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if key != "t")  # Monitor's clock
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return type(a) is type(b) and (a == b or (a != a and b != b))


def advance(env: gym.Env, steps: int, actions: np.random.Generator) -> list:
    """Steps with resets where episodes end; everything the environment returned."""
    space, seen = env.action_space, []
    for _ in range(steps):
        action = (
            int(actions.integers(space.n))
            if hasattr(space, "n")
            else actions.uniform(*np.clip((space.low, space.high), -5, 5))
        )
        seen.append(env.step(action))
        if seen[-1][2] or seen[-1][3]:
            seen.append(env.reset())
    return seen


def through_disk(state: Any, folder: Path) -> Any:
    checkpoints = Checkpoints(folder, keep=1)
    return checkpoints.load(checkpoints.save(0, {"env": state}, {}))[0]["env"]


def goes_on(make: Any, folder: Path, warm_up: int, steps: int = 200, seed: int = 3) -> None:
    live, fresh = make(), make()
    live.reset(seed=seed)
    advance(live, warm_up, np.random.default_rng(seed))
    saved = env_state.snapshot(live)
    assert saved is not None, env_state.obstacle(live)
    env_state.restore(fresh, through_disk(saved, folder))
    expected = advance(live, steps, np.random.default_rng(seed + 1))
    assert same(expected, advance(fresh, steps, np.random.default_rng(seed + 1)))
    used = make()  # restored in the middle of another episode, and from a tree that was used before
    used.reset(seed=99)
    advance(used, 7, np.random.default_rng(0))
    env_state.restore(used, saved)
    assert same(expected, advance(used, steps, np.random.default_rng(seed + 1)))


@pytest.mark.parametrize("warm_up", [0, 61])
@pytest.mark.parametrize("env_id", SAVABLE)
def test_the_next_200_steps_are_the_same(env_id, warm_up, tmp_path):
    goes_on(lambda: Monitor(gym.make(env_id)), tmp_path, warm_up)


@pytest.mark.parametrize("env_id", ["Ant-v5", "Humanoid-v5"])
def test_the_integration_state_alone_is_not_enough(env_id, tmp_path, monkeypatch):
    """Both read body positions of the last substep before they step; so this test guards the one above."""
    monkeypatch.setattr(env_state, "_is_field", lambda _: False)
    with pytest.raises(AssertionError):
        goes_on(lambda: gym.make(env_id), tmp_path, 20)


@pytest.mark.parametrize("env_id", SAVABLE)
def test_every_attribute_that_changes_is_listed(env_id):
    """A later Gymnasium may remember more: then this fails, and the table must grow."""
    env = gym.make(env_id)
    base = env.unwrapped
    ignored = {"_np_random", "_np_random_seed", "model", "data", "mujoco_renderer", "observation_space", "action_space"}

    def remembered() -> dict[str, Any]:
        return {name: repr(value) for name, value in vars(base).items() if name not in ignored}

    env.reset(seed=0)
    before = remembered()
    changed = set()
    for _ in range(6):
        advance(env, 60, np.random.default_rng(1))
        after = remembered()
        changed |= {name for name in after if after[name] != before.get(name)}
        before = after
    assert changed <= set(env_state.REMEMBERS[f"{type(base).__module__}.{type(base).__qualname__}"])


def test_the_model_is_not_changed_by_stepping():
    for name in MUJOCO:
        env = gym.make(f"{name}-v5")
        model = env.unwrapped.model
        fields = {field: value.copy() for field in dir(model) if isinstance(value := getattr(model, field), np.ndarray)}
        env.reset(seed=0)
        advance(env, 60, np.random.default_rng(1))
        assert all(same(value, getattr(model, field)) for field, value in fields.items()), name


@pytest.mark.parametrize("name", env_state.REMEMBERS)
def test_every_name_in_the_table_exists(name):
    module, _, cls = name.rpartition(".")
    assert hasattr(importlib.import_module(module), cls)


WRAPPERS = {
    "rescaled": lambda env: gym.wrappers.ClipAction(gym.wrappers.RescaleAction(env, -1.0, 1.0)),
    "flat": gym.wrappers.FlattenObservation,
    "time": gym.wrappers.TimeAwareObservation,
    "sticky": lambda env: gym.wrappers.StickyAction(env, 0.5),
    "late": lambda env: gym.wrappers.DelayObservation(env, 3),
    "stacked": lambda env: gym.wrappers.FrameStackObservation(env, 4),
    "normal": lambda env: gym.wrappers.NormalizeReward(gym.wrappers.NormalizeObservation(env)),
    "skipping": lambda env: gym.wrappers.MaxAndSkipObservation(env, 2),
    "short": lambda env: gym.wrappers.TimeLimit(env, 13),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(wrapper, tmp_path):
    goes_on(lambda: Monitor(WRAPPERS[wrapper](gym.make("Pendulum-v1"))), tmp_path, 30, 60)


class Drifting(gym.Env):
    """An environment of one's own with ``state_dict``."""

    def __init__(self):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal()
        return np.array([self.x], np.float32), {}

    def step(self, action):
        self.x += 0.1 * (2 * action - 1) + self.np_random.normal() + self.action_space.sample()
        return np.array([self.x], np.float32), self.x, abs(self.x) > 10, False, {"x": self.x}

    def state_dict(self):
        return {"x": self.x}

    def load_state_dict(self, state):
        self.x = state["x"]


class Forgetful(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)


class Bare(gym.RewardWrapper):
    def reward(self, reward):
        return 2 * reward


class Counting(gym.Wrapper):
    def __init__(self, env):
        super().__init__(env)
        self.count = 0


class CountingWithState(Counting):
    def step(self, action):
        self.count += 1
        obs, reward, *rest = self.env.step(action)
        return obs, reward + self.count, *rest

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_an_environment_with_state_dict(tmp_path):
    goes_on(lambda: Monitor(CountingWithState(Bare(Drifting()))), tmp_path, 20)


@pytest.mark.parametrize(
    ("env", "culprit"),
    [
        (Forgetful(), "Forgetful"),
        (Counting(Drifting()), "Counting"),
        (Monitor(Bare(Counting(Bare(Drifting())))), "Counting"),
    ],
)
def test_what_cannot_be_saved_is_named(env, culprit):
    assert env_state.snapshot(env) is None
    assert env_state.obstacle(env).endswith(f"{culprit} gives no state_dict")


def test_another_chain_of_wrappers_is_refused():
    plain, wrapped = gym.make("CartPole-v1"), Monitor(gym.make("CartPole-v1"))
    with pytest.raises(CheckpointError, match=r"the environment is built of .*Monitor.*; the checkpoint's of "):
        env_state.restore(wrapped, env_state.snapshot(plain))


def vec_factory(kind: str, wrap: Any) -> Any:
    cls, kwargs = (SubprocVecEnv, {"start_method": "fork"}) if kind == "subproc" else (DummyVecEnv, {})

    def make(seed: int) -> Any:
        venv = make_vec_env(
            "Hopper-v5", 2, seed, wrapper_class=env_state.attach, vec_env_cls=cls, vec_env_kwargs=kwargs
        )
        return wrap(venv)

    return make


VEC = {
    "dummy": ("dummy", lambda venv: venv),
    "normalized": ("dummy", lambda venv: VecNormalize(venv, gamma=0.9)),
    "stacked": ("dummy", lambda venv: VecFrameStack(VecMonitor(venv), 3)),
    "subproc": ("subproc", VecNormalize),
}


def advance_all(venv: Any, steps: int, seed: int) -> list:
    actions = np.random.default_rng(seed)
    return [venv.step(actions.uniform(-1, 1, (venv.num_envs, 3)).astype(np.float32)) for _ in range(steps)]


@pytest.mark.parametrize("case", VEC)
def test_vector_environments(case, tmp_path):
    make = vec_factory(*VEC[case])
    live, fresh = make(5), make(77)
    try:
        live.reset()
        advance_all(live, 50, 1)
        saved = env_state.snapshot_all(live)
        assert env_state.unsavable(live) == []
        env_state.restore_all(fresh, through_disk(saved, tmp_path))
        expected, continued = advance_all(live, 120, 2), advance_all(fresh, 120, 2)
        assert any(dones.any() for _, _, dones, _ in expected)
        assert same(expected, continued)
        assert same(live.unwrapped._seeds, fresh.unwrapped._seeds)
        assert same(live.reset(), fresh.reset())
    finally:
        live.close()
        fresh.close()


def test_pending_seeds_and_options_survive():
    live, fresh = (DummyVecEnv([lambda: gym.make("CartPole-v1")] * 1) for _ in range(2))
    live.seed(31)
    live.set_options({"low": -0.01, "high": 0.01})
    env_state.restore_all(fresh, env_state.snapshot_all(live))
    assert same(live.reset(), fresh.reset())


def test_unsavable_vectors_say_why(tmp_path):
    counting = DummyVecEnv([partial(Counting, Drifting()), lambda: Counting(Drifting())])
    assert env_state.snapshot_all(counting) is None
    assert [reason.rpartition(".")[2] for reason in env_state.unsavable(counting)] == ["Counting gives no state_dict"]
    recorded = VecVideoRecorder.__new__(VecVideoRecorder)
    recorded.venv = DummyVecEnv([Drifting])
    assert env_state.snapshot_all(recorded) is None
    assert env_state.unsavable(recorded)[0].endswith("VecVideoRecorder gives no state_dict")


def test_attach_adds_no_layer():
    env = Monitor(gym.make("CartPole-v1"))
    assert env_state.attach(env) is env
    env.reset(seed=1)
    assert same(env.get_wrapper_attr("budwood_snapshot")(), env_state.snapshot(env))
    assert env_state.obstacle(Bare(env)) is None

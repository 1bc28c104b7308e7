"""The behaviour of Stable-Baselines3, gymnasium and MuJoCo that the adapter is built on, each fact tried for real.

python tests/benchmarks/sb3_facts.py          prints the table of docs/seams/sb3.md; exit code 1 if a fact no longer holds

Every function below returns (whether the fact holds, what was seen); its docstring is the fact.
"""

from __future__ import annotations

import copy
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import VecEnvWrapper

Fact = Callable[[], tuple[bool, str]]
TINY: dict[str, Any] = {"n_steps": 16, "batch_size": 8, "n_epochs": 1, "device": "cpu", "seed": 0}
LIMITS = [4, 9, 14]
"""Steps of a rollout of 16 at which an episode of :class:`Short` is cut off."""
DISTRIBUTIONS = ("stable-baselines3", "gymnasium", "mujoco", "torch", "numpy")


class Short(gym.Env[np.ndarray, np.ndarray]):
    """Reward 1 a step, cut off by the time limit after 5 steps."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))
    steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.ones(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.ones(2, np.float32), 1.0, False, self.steps == 5, {}


class Follow(BaseCallback):
    """Notes the order of events in ``seen``, and the rewards as they are at ``on_step``."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen, self.rewards = seen, []

    def _on_rollout_start(self) -> None:
        self.seen.append("on_rollout_start")

    def _on_rollout_end(self) -> None:
        self.seen.append("on_rollout_end")

    def _on_step(self) -> bool:
        self.rewards.append(self.locals["rewards"].copy())
        return True


class Keep(VecEnvWrapper):
    """Keeps every reward array it hands out, and a copy."""

    def __init__(self, venv: Any) -> None:
        super().__init__(venv)
        self.given, self.copies = [], []

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        self.given.append(rewards)
        self.copies.append(rewards.copy())
        return obs, rewards, dones, infos


def ppo(env: Any = None, **changes: Any) -> PPO:
    return PPO("MlpPolicy", env or make_vec_env(Short, 2), **{**TINY, **changes})


def note(seen: list[str], owner: Any, method: str) -> None:
    """Have ``owner.method`` append its name to ``seen`` before it runs."""
    original = getattr(owner, method)

    def noted(*args: Any, **kwargs: Any) -> Any:
        seen.append(method)
        return original(*args, **kwargs)

    setattr(owner, method, noted)


def monitor_is_innermost() -> tuple[bool, str]:
    """`make_vec_env` puts `Monitor` directly around what `gymnasium.make` gives, inside `wrapper_class`."""
    env = make_vec_env("Pendulum-v1", 1, wrapper_class=gym.wrappers.ClipAction).envs[0]
    chain = [type(env).__name__]
    while isinstance(env, gym.Wrapper):
        env = env.env
        chain.append(type(env).__name__)
    return chain[:3] == ["ClipAction", "Monitor", "TimeLimit"], " > ".join(chain)


def monitor_reports_the_native_return() -> tuple[bool, str]:
    """A reward changed by a `VecEnvWrapper` leaves `info["episode"]["r"]` as it was."""

    class Double(Keep):
        def step_wait(self) -> Any:
            obs, rewards, dones, infos = super().step_wait()
            return obs, 2 * rewards, dones, infos

    env = Double(make_vec_env(Short, 1))
    env.reset()
    for _ in range(5):
        _, _, _, infos = env.step(np.zeros((1, 1), np.float32))
    return infos[0]["episode"]["r"] == 5.0, f"5 steps of 2 x 1 are reported as {infos[0]['episode']['r']}"


def bootstrap_is_in_place() -> tuple[bool, str]:
    """At a time limit `collect_rollouts` adds gamma V(terminal) in place to the array the environment returned;"""
    env = Keep(make_vec_env(Short, 2))
    ppo(env).learn(32)
    changed = [i for i, (a, b) in enumerate(zip(env.given, env.copies, strict=True)) if not np.array_equal(a, b)]
    return changed == LIMITS, f"arrays changed after they were returned: steps {changed} of 16, time limits at {LIMITS}"


def on_step_precedes_the_bootstrap() -> tuple[bool, str]:
    """that happens after `callback.on_step()`."""
    callback = Follow([])
    model = ppo()
    model.learn(32, callback=callback)
    seen = np.array(callback.rewards)
    stored = model.rollout_buffer.rewards
    moved = np.flatnonzero((seen != stored).any(axis=1)).tolist()
    return bool((seen == 1).all()) and moved == LIMITS, f"on_step saw 1.0 always; the buffer differs at steps {moved}"


def advantages_precede_rollout_end() -> tuple[bool, str]:
    """`compute_returns_and_advantage` runs before `on_rollout_end`."""
    seen: list[str] = []
    model = ppo()
    note(seen, model.rollout_buffer, "compute_returns_and_advantage")
    model.learn(32, callback=Follow(seen))
    return seen == ["on_rollout_start", "compute_returns_and_advantage", "on_rollout_end"], ", ".join(seen)


def noise_precedes_rollout_start() -> tuple[bool, str]:
    """With gSDE `policy.reset_noise` draws before `on_rollout_start`."""
    seen: list[str] = []
    model = ppo(use_sde=True)
    note(seen, model.policy, "reset_noise")
    model.learn(32, callback=Follow(seen))
    return seen[:2] == ["reset_noise", "on_rollout_start"], ", ".join(seen[:3])


def train_metrics_outlive_the_dump() -> tuple[bool, str]:
    """`train()` records `train/*` after `dump_logs`: at a boundary they wait in the logger for the next dump."""
    model = ppo()
    model.learn(32)
    waiting = sorted(model.logger.name_to_value)
    of_train = [key for key in waiting if key.startswith("train/")]
    return len(waiting) > 0 and waiting == of_train, f"{len(waiting)} keys wait after learn()"


def continuing_adds_the_steps_done() -> tuple[bool, str]:
    """`learn(n, reset_num_timesteps=False)` trains n steps more, not up to n."""
    model = ppo()
    model.learn(32)
    model.learn(32, reset_num_timesteps=False)
    return model._total_timesteps == 64, f"32 done, learn(32): total {model._total_timesteps}"


def action_noise_restarts_with_learn() -> tuple[bool, str]:
    """`learn` resets the action noise, also when it continues."""
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1))
    model = SAC("MlpPolicy", make_vec_env(Short, 1), action_noise=noise, device="cpu", learning_starts=10)
    seen: list[str] = []
    note(seen, noise, "reset")
    model.learn(6)
    before = len(seen)
    model.learn(1, reset_num_timesteps=False)
    return len(seen) > before, f"{len(seen) - before} reset in a continued learn() of one step"


def buffer_arguments_are_pickled() -> tuple[bool, str]:
    """`save` pickles `rollout_buffer_kwargs`, and a `VecEnvWrapper` cannot be pickled: bind after construction."""

    class Bound(RolloutBuffer):
        def __init__(self, *args: Any, env: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    env = Keep(make_vec_env(Short, 2))
    model = ppo(env, rollout_buffer_class=Bound, rollout_buffer_kwargs={"env": env})
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.save(Path(folder) / "model.zip")
        except TypeError as error:
            return True, f"{type(error).__name__}: {error}"
    return False, "saved"


def transforms_block_deepcopy() -> tuple[bool, str]:
    """After `torch.func` over `evaluate_actions` the policy cannot be deep-copied until its next ordinary forward."""
    policy = ppo().policy
    obs, actions = torch.zeros(3, 2), torch.zeros(3, 1)

    class LogProb(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = policy

        def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            return self.policy.evaluate_actions(obs, actions)[1]

    module = LogProb()
    parameters = dict(module.named_parameters())
    torch.func.grad(lambda p: torch.func.functional_call(module, p, (obs, actions)).sum())(parameters)
    try:
        copy.deepcopy(policy)
    except RuntimeError as error:
        text = str(error).splitlines()[0]
    else:
        return False, "copied"
    with torch.no_grad():
        policy(obs)
    copy.deepcopy(policy)
    return True, f"RuntimeError ({text[:60]}...), gone after one forward"


def infos_are_copied_every_step() -> tuple[bool, str]:
    """`DummyVecEnv.step_wait` deep-copies all infos every step."""
    env = make_vec_env("HalfCheetah-v5", 8, seed=0)
    env.reset()
    actions = np.zeros((8, 6), np.float32)
    env.step(actions)
    copied = env.step(actions)[3][0] is not env.buf_infos[0]
    copying = _microseconds(lambda: copy.deepcopy(env.buf_infos), 2_000)
    step = _microseconds(lambda: env.step(actions), 200)
    return (
        copied,
        f"8 x HalfCheetah: {copying:.0f} of the {step:.0f} us of CPU of a step ({100 * copying / step:.0f} %)",
    )


def _microseconds(call: Callable[[], object], calls: int) -> float:
    best = float("inf")
    for _ in range(5):
        started = time.process_time_ns()
        for _ in range(calls):
            call()
        best = min(best, (time.process_time_ns() - started) / calls / 1000)
    return best


def mujoco_tasks_need_imageio() -> tuple[bool, str]:
    """gymnasium's MuJoCo tasks import `imageio` even when nothing is rendered: `gymnasium[mujoco]` is needed."""
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("gymnasium.envs.mujoco")}
    imageio = sys.modules.get("imageio")
    sys.modules["imageio"] = None  # type: ignore[assignment]
    try:
        gym.make("Hopper-v5")
    except ImportError as error:
        return True, f"{type(error).__name__}: {error}"
    else:
        return False, "made without it"
    finally:
        del sys.modules["imageio"]
        sys.modules.update(hidden if imageio is None else {**hidden, "imageio": imageio})


def physics_state_is_complete() -> tuple[bool, str]:
    """`mjSTATE_INTEGRATION` brings a MuJoCo task back exactly; qpos and qvel alone do not."""
    import mujoco

    env = gym.make("Hopper-v5", terminate_when_unhealthy=False).unwrapped
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(20):
        env.step(rng.uniform(-1, 1, 3))
    whole = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(env.model, whole))
    mujoco.mj_getState(env.model, env.data, state, whole)
    qpos, qvel = env.data.qpos.copy(), env.data.qvel.copy()
    actions = rng.uniform(-1, 1, (200, 3))
    expected = np.array([env.step(action)[0] for action in actions])

    env.reset(seed=1)
    mujoco.mj_setState(env.model, env.data, state, whole)
    mujoco.mj_forward(env.model, env.data)
    mujoco.mj_setState(env.model, env.data, state, whole)
    exact = np.abs(np.array([env.step(action)[0] for action in actions]) - expected).max()

    env.reset(seed=1)
    env.set_state(qpos, qvel)
    parts = np.abs(np.array([env.step(action)[0] for action in actions]) - expected).max()
    return exact == 0 < parts, f"largest difference over 200 steps: {exact:g} with it, {parts:.2g} with qpos and qvel"


def episode_state_is_outside_the_physics() -> tuple[bool, str]:
    """Beside the physics an episode lives in `TimeLimit`, `Monitor` and the environment's generator."""
    env = Monitor(gym.make("Hopper-v5"))
    env.reset(seed=0)
    env.step(np.zeros(3, np.float32))
    limit: Any = env
    while not isinstance(limit, gym.wrappers.TimeLimit):
        limit = limit.env
    held = {"TimeLimit._elapsed_steps": limit._elapsed_steps, "Monitor.rewards": len(env.rewards)}
    generator = env.unwrapped.np_random.bit_generator.state["bit_generator"]
    seen = ", ".join(f"{name} {value}" for name, value in held.items())
    return set(held.values()) == {1}, f"after one step {seen}; generator {generator}"


def joint_types_compare() -> tuple[bool, str]:
    """`mjtJoint.mjJNT_FREE == numpy.int32(0)` is true below mujoco 3.12 (gymnasium-robotics and robosuite rely on it)."""
    import mujoco

    left, right = mujoco.mjtJoint.mjJNT_FREE == np.int32(0), np.int32(0) == mujoco.mjtJoint.mjJNT_FREE
    return bool(left and right), f"{left}, the other way round {right}"


FACTS: tuple[Fact, ...] = (
    monitor_is_innermost,
    monitor_reports_the_native_return,
    bootstrap_is_in_place,
    on_step_precedes_the_bootstrap,
    advantages_precede_rollout_end,
    noise_precedes_rollout_start,
    train_metrics_outlive_the_dump,
    continuing_adds_the_steps_done,
    action_noise_restarts_with_learn,
    buffer_arguments_are_pickled,
    transforms_block_deepcopy,
    infos_are_copied_every_step,
    mujoco_tasks_need_imageio,
    physics_state_is_complete,
    episode_state_is_outside_the_physics,
    joint_types_compare,
)


def main() -> int:
    torch.set_num_threads(1)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in DISTRIBUTIONS)
    print(f"Python {platform.python_version()}, {versions}\n\n| fact | holds | seen |\n| --- | --- | --- |")
    broken = 0
    for fact in FACTS:
        holds, seen = fact()
        broken += not holds
        print(f"| {' '.join((fact.__doc__ or '').split())} | {'yes' if holds else '**NO**'} | {seen} |")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

"""Franka Kitchen with vectors for observations, and a script that cooks in it, to learn from.

    python -m budwood_flow_rl.kitchen demos.safetensors --episodes 100

gymnasium-robotics' FrankaKitchen-v1 (Gupta et al., arXiv 1910.11956; extra ``kitchen``): a nine-joint arm, and a reward of 1
for every subtask done. Its published demonstrations are on a server; this script needs none. The hand moves from place to place
by the damped pseudo-inverse of its Jacobian. Two subtasks: the slide cabinet is opened, then the kettle is pushed to the back
burner. ``--wander`` is how far each place is moved at random, a new draw each episode: that is where its failures come from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from budwood.api import Array, ConfigError
from budwood_flow_rl.demonstrations import Demonstrations, concatenated, save
from budwood_flow_rl.recording import versions

TASKS = ("slide cabinet", "kettle")
PLACES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "slide cabinet": ((-0.40, 0.30, 2.45), (-0.28, 0.45, 2.60), (-0.25, 0.62, 2.65), (0.15, 0.66, 2.62)),
    "kettle": ((-0.40, 0.12, 2.05), (-0.27, 0.12, 2.00), (-0.27, 0.15, 1.88), (-0.25, 0.75, 1.95)),
}
"""Metres. The last of each is where the subtask is done on the way."""
NEAR, PATIENCE = 0.04, 25
"""Metres to a place, and steps without reaching it, after which the hand goes on."""
GAIN, FASTEST, DAMPING = 4.0, 0.8, 0.01
"""1/s, m/s, and what keeps the inverse finite near a singular pose."""


class Kitchen(gym.ObservationWrapper[Any, Any, Any]):
    """Observations (59,): joints and objects, positions and velocities, without the goals, which never change. Actions (9,)
    in [-1, 1]: joint velocities of 2 rad/s. An episode ends when all ``tasks`` are done, or after ``max_steps``."""

    def __init__(self, tasks: Sequence[str] = TASKS, max_steps: int = 280) -> None:
        try:
            import gymnasium_robotics
        except ImportError as error:
            raise ConfigError(
                f"Franka Kitchen cannot be imported: {error}", where="env", do='pip install "budwood-flow-rl[kitchen]"'
            ) from error
        gym.register_envs(gymnasium_robotics)
        super().__init__(
            gym.make(
                "FrankaKitchen-v1",
                tasks_to_complete=list(tasks),
                max_episode_steps=max_steps,
                disable_env_checker=True,
            )
        )
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (59,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (9,), np.float32)

    def observation(self, observation: Any) -> Array:
        flat: Array = observation["observation"].astype(np.float32)
        return flat


def towards(kitchen: Kitchen, place: Array) -> tuple[Array, float]:
    """-> (the action (9,) that moves the hand to ``place`` (3,), metres to go). The gripper stays closed."""
    import mujoco

    model, data = kitchen.unwrapped.model, kitchen.unwrapped.data  # type: ignore[attr-defined]
    hand = model.site("end_effector").id
    jacobian = np.zeros((3, model.nv))
    mujoco.mj_jacSite(model, data, jacobian, None, hand)
    arm = jacobian[:, :7]
    to_go = place - data.site_xpos[hand]
    velocity = GAIN * to_go
    velocity *= min(1.0, FASTEST / max(float(np.linalg.norm(velocity)), 1e-9))
    joints = arm.T @ np.linalg.solve(arm @ arm.T + DAMPING * np.eye(3), velocity)
    action = np.full(9, -1.0)
    action[:7] = np.clip(joints / 2, -1, 1)
    return action, float(np.linalg.norm(to_go))


def cook(kitchen: Kitchen, seed: int, wander: float, shake: float) -> tuple[Array, Array, Array, bool]:
    """One episode -> observations (T, 59), executed actions (T, 9), rewards (T,), whether all was done."""
    rng = np.random.default_rng(seed)
    seen, _ = kitchen.reset(seed=seed)
    rows, terminated = [], False
    for place, last in _places(rng, wander):
        for _ in range(PATIENCE * (3 if last else 1)):
            action, left = towards(kitchen, place)
            action[:7] = np.clip(action[:7] + rng.normal(0, shake, 7), -1, 1)
            after, reward, terminated, truncated, _ = kitchen.step(action)
            rows.append((seen, action, float(reward)))
            seen = after
            if terminated or truncated or left < NEAR or (last and reward):
                break
        if terminated or truncated:
            break
    observations, actions, rewards = zip(*rows, strict=True)
    return np.array(observations), np.array(actions), np.array(rewards), bool(terminated)


def _places(rng: np.random.Generator, wander: float) -> Iterator[tuple[Array, bool]]:
    """Every place (3,) in turn, moved at random, and whether it is the last of its subtask."""
    for task in TASKS:
        moved = np.array(PLACES[task]) + rng.normal(0, wander, (len(PLACES[task]), 3))
        yield from ((place, number == len(moved)) for number, place in enumerate(moved, 1))


def record(episodes: int, *, seed: int = 0, wander: float = 0.06, shake: float = 0.2) -> Demonstrations:
    """``episodes`` with seeds counting up. ``wander`` in metres, ``shake`` the standard deviation of what is added to actions.

    :raises ConfigError: gymnasium-robotics is not installed.
    """
    kitchen = Kitchen()
    played = []
    for number in range(episodes):
        played.append(cook(kitchen, seed + number, wander, shake))
        print(f"\r{number + 1}/{episodes} episodes", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    kitchen.close()
    done = [each[3] for each in played]
    return concatenated(
        [each[:3] for each in played],
        done,
        [not each for each in done],
        env_id="budwood_flow_rl.kitchen:Kitchen",
        about={
            "source": "the script of budwood_flow_rl.kitchen",
            "seed": seed,
            "wander": wander,
            "shake": shake,
            "versions": versions() | {"gymnasium-robotics": metadata.version("gymnasium-robotics")},
        },
    )


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m budwood_flow_rl.kitchen",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument("--wander", type=float, default=0.06, help="metres, default: %(default)s")
    parser.add_argument("--shake", type=float, default=0.2, help="noise on actions in [-1, 1], default: %(default)s")
    asked = parser.parse_args(given)
    demos = record(asked.episodes, seed=asked.seed, wander=asked.wander, shake=asked.shake)
    save(asked.file, demos)
    print(f"{asked.file}: {len(demos)} steps, {demos.mean_return:.2f} of {len(TASKS)} subtasks an episode")


if __name__ == "__main__":
    main()

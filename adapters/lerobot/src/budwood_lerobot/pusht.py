"""Episodes of PushT by a rule, as a LeRobotDataset: something to learn from without a network and without a person.

python -m budwood_lerobot.pusht FOLDER --episodes 20     pictures of 96 x 96, as in the dataset lerobot/pusht

The rule goes around the T and pushes it along the line to its place; it never turns it on purpose, so it covers a part of the
goal and rarely all of it. Positions are in PushT's own units: 0 to 512, y downwards.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from budwood.api import Array, ConfigError

FPS, SIDE = 10, 96
RING, STRIDE = 105.0, 40.0
"""How far from the T's middle the way around it is, beyond every corner; and how far ahead a command lies at most."""
ALIGNED = 0.25
"""Radians off the line at which pushing begins."""
WOBBLE = 4.0
"""Standard deviation of what is added to each command, so that no two pushes are the same."""


def aim(agent: Array, block: Array, place: Array) -> Array:
    """Where to send the agent (2,), given the middles of the T and of its place."""
    away, out = block - place, agent - block
    behind = np.arctan2(away[1], away[0])
    now = np.arctan2(out[1], out[0])
    turn = (behind - now + np.pi) % (2 * np.pi) - np.pi
    if abs(turn) < ALIGNED:
        towards = place - agent
    else:
        angle = now + np.clip(turn, -0.5, 0.5)
        towards = block + RING * np.array([np.cos(angle), np.sin(angle)]) - agent
    length = float(np.linalg.norm(towards))
    aimed: Array = agent + towards * min(1.0, STRIDE / max(length, 1e-9))
    return aimed


def play(env: Any, seed: int, steps: int) -> Iterator[tuple[dict[str, Any], Array, float]]:
    """Observation, action (2,) float32 and reward of every step of one episode, which ends early where the T is in place."""
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    inner = env.unwrapped
    goal = inner.get_goal_pose_body(inner.goal_pose)
    middle = inner.block.center_of_gravity
    place = np.array(goal.local_to_world(middle))
    for _ in range(steps):
        wanted = aim(np.array(inner.agent.position), np.array(inner.block.local_to_world(middle)), place)
        action = np.clip(wanted + rng.normal(0, WOBBLE, 2), 0, 512).astype(np.float32)
        after, reward, over, _, _ = env.step(action)
        yield obs, action, float(reward)
        if over:
            return
        obs = after


def record(folder: Path, episodes: int, steps: int = 100, seed: int = 0) -> list[float]:
    """Write ``episodes`` of at most ``steps`` steps to ``folder``, seeds counting up. -> the best reward of each, in [0, 1]

    :raises ConfigError: the folder exists, or PushT is not installed.
    """
    import gymnasium as gym

    from budwood_lerobot.recording import begun

    try:
        import gym_pusht  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"PushT cannot be imported: {error}", where="gym_pusht", do='pip install "budwood-lerobot[pusht]"'
        ) from error
    env = gym.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos", observation_width=SIDE, observation_height=SIDE)
    features = {
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        "observation.image": {"dtype": "image", "shape": (SIDE, SIDE, 3), "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    }
    rows = begun(folder, "pusht", FPS, features)
    best = []
    for episode in range(episodes):
        rewards = []
        for obs, action, reward in play(env, seed + episode, steps):
            rows.add_frame(
                {
                    "observation.state": obs["agent_pos"].astype(np.float32),
                    "observation.image": obs["pixels"],
                    "action": action,
                    "task": "Push the T to its place.",
                }
            )
            rewards.append(reward)
        rows.save_episode()
        best.append(max(rewards))
    rows.finalize()
    env.close()
    return best


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m budwood_lerobot.pusht", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100, help="of an episode at most")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    asked = parser.parse_args(given)
    best = record(asked.folder, asked.episodes, asked.steps, asked.seed)
    print(f"{asked.folder}: {len(best)} episodes, {np.mean(best):.0%} of the goal covered at best, on average")


if __name__ == "__main__":
    main()

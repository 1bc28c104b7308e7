"""Demonstrations of the discs by a rule, as a LeRobotDataset.

python -m budwood_lerobot.discs FOLDER --episodes 1000
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from budwood.api import ConfigError
from budwood_lerobot.discs.environment import FPS, SIDE, STEPS, Discs, aim

_PICTURE = ["height", "width", "channels"]
FEATURES: dict[str, dict[str, Any]] = {
    "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    "observation.image": {"dtype": "image", "shape": (SIDE, SIDE, 3), "names": _PICTURE},
    "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
}


def record(folder: Path, episodes: int, seed: int = 0, mistaken: float = 0.5) -> list[bool]:
    """Write ``episodes`` to ``folder``, seeds counting up. -> which of them touched the disc that was named

    In the share ``mistaken`` of them the rule goes to one of the other two discs, whatever the words are.

    :raises ConfigError: the folder exists.
    """
    from datasets import disable_progress_bars
    from lerobot.datasets import LeRobotDataset

    if folder.exists():
        raise ConfigError(f"{folder} exists already", where="FOLDER", do="Name a folder that is not there yet")
    rows = LeRobotDataset.create(
        repo_id="local/discs", fps=FPS, features=FEATURES, root=folder, robot_type="discs", use_videos=False
    )
    disable_progress_bars()  # one for every episode
    env, successes = Discs(), []
    for episode in range(episodes):
        rng = np.random.default_rng(seed + episode)
        obs, info = env.reset(seed=seed + episode)
        away = int(rng.integers(1, 3)) if rng.random() < mistaken else 0
        disc = env.discs[(env.named + away) % 3]
        for _ in range(STEPS):
            action = aim(env.point, disc, rng)
            rows.add_frame(
                {
                    "observation.state": obs["agent_pos"],
                    "observation.image": obs["pixels"],
                    "action": action,
                    "task": env.task_description,
                }
            )
            obs, _, over, _, info = env.step(action)
            if over:
                break
        rows.save_episode()
        successes.append(info["is_success"])
    rows.finalize()
    return successes


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m budwood_lerobot.discs", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument("--mistaken", type=float, default=0.5, help="share of episodes that go to another disc")
    asked = parser.parse_args(given)
    successes = record(asked.folder, asked.episodes, asked.seed, asked.mistaken)
    print(f"{asked.folder}: {len(successes)} episodes, {np.mean(successes):.0%} of them successful")


if __name__ == "__main__":
    main()

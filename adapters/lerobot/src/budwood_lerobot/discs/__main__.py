"""Demonstrations of the discs by a rule, as a LeRobotDataset.

python -m budwood_lerobot.discs FOLDER --episodes 1000 --pace 0.6
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from budwood_lerobot.discs.environment import FPS, SIDE, STEPS, Discs, aim

_PICTURE = ["height", "width", "channels"]
FEATURES: dict[str, dict[str, Any]] = {
    "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    "observation.image": {"dtype": "image", "shape": (SIDE, SIDE, 3), "names": _PICTURE},
    "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
}


def record(folder: Path, episodes: int, seed: int = 0, pace: float = 1.0) -> list[int]:
    """Write ``episodes`` to ``folder``, seeds counting up, each until the disc that is named is touched. -> steps of each

    ``pace`` is a share of full speed; at 0.6 half of the episodes take longer than the task's time limit.

    :raises ConfigError: the folder exists.
    """
    from datasets import disable_progress_bars

    from budwood_lerobot.recording import begun

    rows = begun(folder, "discs", FPS, FEATURES)
    disable_progress_bars()  # one for every episode
    env, lengths = Discs(), []
    for episode in range(episodes):
        rng = np.random.default_rng(seed + episode)
        obs, _ = env.reset(seed=seed + episode)
        length, over = 0, False
        while not over:
            action = aim(env.point, env.discs[env.named], rng, pace)
            rows.add_frame(
                {
                    "observation.state": obs["agent_pos"],
                    "observation.image": obs["pixels"],
                    "action": action,
                    "task": env.task_description,
                }
            )
            obs, _, over, _, _ = env.step(action)
            length += 1
        rows.save_episode()
        lengths.append(length)
    rows.finalize()
    return lengths


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m budwood_lerobot.discs", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument("--pace", type=_share, default=1.0, help="share of full speed, above 0.1")
    asked = parser.parse_args(given)
    lengths = np.array(record(asked.folder, asked.episodes, asked.seed, asked.pace))
    late = (lengths > STEPS).mean()
    print(
        f"{asked.folder}: {len(lengths)} episodes of {lengths.mean():.1f} steps, {late:.0%} of them longer than {STEPS}"
    )


def _share(text: str) -> float:
    """Slower than the wobble, the rule would hardly arrive."""
    share = float(text)
    if not 0.1 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0.1 and at most 1")
    return share


if __name__ == "__main__":
    main()

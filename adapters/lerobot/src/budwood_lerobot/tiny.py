"""A policy to try a run with: ``python -m budwood_lerobot.tiny FOLDER`` writes a SmolVLA for PushT, of random weights.

LeRobot's own class at the sizes of :mod:`budwood_lerobot.testing`, saved as LeRobot saves a trained one: `policy.path` of a run
loads it as it loads any other. It has learnt nothing, so all it shows is that a run works.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from budwood_lerobot.testing import tiny_policy


def write(folder: Path, *, seed: int = 0) -> int:
    """Into `folder`, which stays where it is: its configuration names its tokenizer's place. -> number of parameters

    Actions and positions are scaled as if they were spread evenly over the environment's bounds.
    """
    import gym_pusht  # noqa: F401  registers the environment
    import gymnasium
    from lerobot.envs.configs import PushtEnv
    from lerobot.envs.utils import env_to_policy_features
    from lerobot.policies import make_pre_post_processors

    features = env_to_policy_features(PushtEnv())
    policy = tiny_policy(
        "smolvla",
        folder.resolve() / "vlm",
        seed=seed,
        input_features={name: feature for name, feature in features.items() if name != "action"},
        output_features={"action": features["action"]},
        pad_language_to="max_length",
    )
    env: Any = gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos")
    places = {"action": env.action_space, "observation.state": env.observation_space["agent_pos"]}
    before, after = make_pre_post_processors(
        policy.config, dataset_stats={name: _even(space) for name, space in places.items()}
    )
    env.close()
    for part in (policy, before, after):
        part.save_pretrained(folder)
    return sum(weight.numel() for weight in policy.parameters())


def _even(space: Any) -> dict[str, Any]:
    """Mean and standard deviation of a uniform distribution over the bounds of a box."""
    import torch

    low, high = torch.as_tensor(space.low).float(), torch.as_tensor(space.high).float()
    return {"mean": (low + high) / 2, "std": (high - low) / 12**0.5}


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m budwood_lerobot.tiny FOLDER")
    folder = Path(sys.argv[1])
    count = write(folder)
    print(f"a SmolVLA of {count:,} random weights for PushT is in {folder}")


if __name__ == "__main__":
    main()

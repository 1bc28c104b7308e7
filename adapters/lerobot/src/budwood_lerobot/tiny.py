"""A policy to try a run with: ``python -m budwood_lerobot.tiny FOLDER`` writes a SmolVLA for PushT, of random weights.

LeRobot's own class at the sizes of :mod:`budwood_lerobot.testing`, saved as LeRobot saves a trained one: `policy.path` of a run
loads it as it loads any other. It has learnt nothing: a run can show that it works, or teach it. ``--env discs`` is for
:mod:`budwood_lerobot.discs`, a task small enough to be learnt on a CPU.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from budwood_lerobot.testing import tiny_policy

ENVS: dict[str, tuple[str, dict[str, Any]]] = {
    "pusht": ("gym_pusht", {}),
    "discs": (
        "budwood_lerobot.discs",
        {
            "chunk_size": 4,
            "n_action_steps": 4,
            "max_state_dim": 2,
            "max_action_dim": 2,
            "tokenizer_max_length": 12,
            "expert_width_multiplier": 1.0,
            "train_expert_only": False,
            "freeze_vision_encoder": False,
        },
    ),
}
"""What registers an environment of LeRobot with Gymnasium, and how its policy differs from other tiny ones: where something is
to be learnt, random eyes have to be trained too."""


def write(folder: Path, env: str = "pusht", *, seed: int = 0) -> int:
    """Into `folder`, which stays where it is: its configuration names its tokenizer's place. -> number of parameters

    Actions and positions are scaled as if they were spread evenly over the environment's bounds.
    """
    import gymnasium
    from lerobot.envs.utils import env_to_policy_features
    from lerobot.policies import make_pre_post_processors

    from budwood_lerobot.native import env_config

    module, different = ENVS[env]
    import_module(module)
    config = env_config(env, {})
    features = env_to_policy_features(config)
    policy = tiny_policy(
        "smolvla",
        folder.resolve() / "vlm",
        seed=seed,
        input_features={name: feature for name, feature in features.items() if name != "action"},
        output_features={"action": features["action"]},
        pad_language_to="max_length",
        **different,
    )
    made: Any = gymnasium.make(config.gym_id, **config.gym_kwargs)
    places = {"action": made.action_space, "observation.state": made.observation_space["agent_pos"]}
    made.close()
    before, after = make_pre_post_processors(
        policy.config, dataset_stats={name: _even(space) for name, space in places.items()}
    )
    for part in (policy, before, after):
        part.save_pretrained(folder)
    return sum(weight.numel() for weight in policy.parameters())


def _even(space: Any) -> dict[str, Any]:
    """Mean and standard deviation of a uniform distribution over the bounds of a box."""
    import torch

    low, high = torch.as_tensor(space.low).float(), torch.as_tensor(space.high).float()
    return {"mean": (low + high) / 2, "std": (high - low) / 12**0.5}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m budwood_lerobot.tiny", description="Write a SmolVLA of random weights."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--env", choices=list(ENVS), default="pusht", help="what it sees and does")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    asked = parser.parse_args()
    count = write(asked.folder, asked.env, seed=asked.seed)
    print(f"a SmolVLA of {count:,} random weights for {asked.env} is in {asked.folder}")


if __name__ == "__main__":
    main()

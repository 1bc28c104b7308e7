"""Episodes of PushT that a rule plays: the rule itself, and the dataset that a newcomer gets from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from budwood import runs
from budwood.api import ConfigError
from budwood_lerobot import pusht

pytest.importorskip("gym_pusht")

CONFIG = Path(__file__).parents[3] / "configs" / "lerobot" / "diffusion_pusht.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rule") / "pusht"
    pusht.main([str(path), "--episodes", "2", "--steps", "9", "--seed", "4"])
    return path


def test_the_rule_goes_behind_the_block_and_pushes() -> None:
    block, place = np.array([300.0, 300.0]), np.array([200.0, 300.0])
    np.testing.assert_allclose(pusht.aim(np.array([405.0, 300.0]), block, place), [365, 300])
    agent, seen = np.array([195.0, 310.0]), []
    for _ in range(20):  # from the wrong side: around, never through
        agent = pusht.aim(agent, block, place)
        if abs(np.arctan2(agent[1] - 300, agent[0] - 300)) < pusht.ALIGNED:
            break
        seen.append(np.linalg.norm(agent - block))
    assert 3 < len(seen) < 19
    assert min(seen) > 85
    assert agent[0] > 385


def test_pushing_covers_more_of_the_goal() -> None:
    import gym_pusht  # noqa: F401
    import gymnasium as gym

    env = gym.make("gym_pusht/PushT-v0", obs_type="environment_state_agent_pos")
    rewards = [[reward for _, _, reward in pusht.play(env, seed, 100)] for seed in range(4)]
    again = [reward for _, _, reward in pusht.play(env, 3, 100)]
    env.close()
    assert again == pytest.approx(rewards[3], abs=1e-6)  # the physics round by what the process has simulated before
    assert np.mean([max(row) for row in rewards]) > np.mean([row[0] for row in rewards]) + 0.2


def test_the_dataset_holds_what_was_played(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import gym_pusht  # noqa: F401
    import gymnasium as gym
    from lerobot.datasets import LeRobotDataset

    rows = LeRobotDataset("local/pusht", root=folder)
    assert (rows.num_episodes, rows.num_frames, rows.fps) == (2, 18, 10)
    env = gym.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos")
    played = list(pusht.play(env, 5, 9))
    env.close()
    for row, (obs, action, _) in zip((rows[9 + t] for t in range(9)), played, strict=True):
        np.testing.assert_array_equal(row["action"], action)
        np.testing.assert_array_equal(row["observation.state"], obs["agent_pos"].astype(np.float32))
        pixels = (row["observation.image"].permute(1, 2, 0).numpy() * 255).round()
        np.testing.assert_array_equal(pixels, obs["pixels"])
        assert row["task"] == "Push the T to its place."
    with pytest.raises(ConfigError, match="exists already"):
        pusht.record(folder, 1)


@pytest.mark.slow
def test_diffusion_on_pusht_runs_as_its_file_says(folder: Path, tmp_path: Path) -> None:
    """A 260-million-parameter network, two steps and one episode."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["trainer"] |= {"total_steps": 2, "args": {"batch_size": 2, "num_workers": 0, "log_freq": 1}}
    config["trainer"]["policy"]["pretrained_backbone_weights"] = None
    config |= {
        "dataset": {"repo_id": "local/pusht", "root": str(folder)},
        "env": {"type": "pusht", "n_envs": 1, "episode_length": 10},
        "evaluation": {"every": 2, "episodes": 1},
        "tracking": {"enabled": False},
        "device": "cpu",
        "output": str(tmp_path / "runs"),
    }
    done = runs.run(config)
    assert done.status == "finished"
    assert {"train/loss", "eval/reward_max", "eval/success_rate"} <= done.metrics.keys()

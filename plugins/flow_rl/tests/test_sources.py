"""Minari and LeRobot datasets made here with those libraries, read as demonstrations."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from budwood.api import ConfigError
from budwood_flow_rl import sources
from budwood_flow_rl.demonstrations import DemonstrationError

minari = pytest.importorskip("minari")


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def rows(steps: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, width)).astype(np.float32)


def buffer(index: int, steps: int, terminated: bool, observations: object) -> object:
    ends = [False] * (steps - 1)
    return minari.data_collector.EpisodeBuffer(
        id=index,
        observations=observations,
        actions=list(np.clip(rows(steps, 1, 10 + index), -2, 2)),
        rewards=[float(i) for i in range(steps)],
        terminations=[*ends, terminated],
        truncations=[*ends, not terminated],
        infos={},
    )


def create(dataset_id: str, buffers: list, **spaces: object) -> None:
    minari.create_dataset_from_buffers(
        dataset_id,
        buffers,
        data_format="arrow",
        code_permalink="none",
        author="a test",
        author_email="none",
        algorithm_name="none",
        description="made by a test",
        **spaces,
    )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_minari_episodes_are_read_without_the_observation_after_the_last_action(local: Path) -> None:
    lengths, ended = (4, 7), (True, False)
    seen = [rows(steps + 1, 3, i) for i, steps in enumerate(lengths)]
    buffers = [buffer(i, lengths[i], ended[i], list(seen[i])) for i in range(2)]
    create("pendulum/test-v0", buffers, env="Pendulum-v1")
    demos = sources.of_minari("pendulum/test-v0")
    assert demos.offsets.tolist() == [0, 4, 11]
    assert np.array_equal(demos.observations, np.concatenate([seen[0][:4], seen[1][:7]]))
    assert np.array_equal(demos.actions[:4], np.clip(rows(4, 1, 10), -2, 2))
    assert demos.returns is not None
    assert demos.returns.tolist() == [6.0, 21.0]
    assert (demos.terminated.tolist(), demos.truncated.tolist()) == ([True, False], [False, True])
    assert demos.env_id == "Pendulum-v1"
    assert demos.about["source"] == "Minari dataset pendulum/test-v0"
    assert sources.of_minari("pendulum/test-v0", env_id="Other-v0").env_id == "Other-v0"
    with pytest.raises(DemonstrationError, match="plain arrays without names"):
        sources.of_minari("pendulum/test-v0", ["state"])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_minari_dicts_need_names_which_are_put_end_to_end(local: Path) -> None:
    box = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    space = gym.spaces.Dict({"state": box, "goal": gym.spaces.Dict({"place": box})})
    state, place = rows(6, 2, 0), rows(6, 2, 1)
    observations = {"state": list(state), "goal": {"place": list(place)}}
    actions = gym.spaces.Box(-2, 2, (1,), np.float32)
    create("maze/test-v0", [buffer(0, 5, True, observations)], observation_space=space, action_space=actions)
    with pytest.raises(DemonstrationError, match=r"dicts with (state, goal|goal, state).*--observation NAME"):
        sources.of_minari("maze/test-v0")
    with pytest.raises(DemonstrationError, match=r"no entry 'goal.speed'"):
        sources.of_minari("maze/test-v0", ["goal.speed"])
    demos = sources.of_minari("maze/test-v0", ["goal.place", "state"])
    assert np.array_equal(demos.observations, np.concatenate([place, state], axis=1)[:5])
    assert demos.env_id is None


def test_minari_never_downloads(local: Path) -> None:
    with pytest.raises(ConfigError, match="there is no local Minari dataset 'mujoco/hopper/expert-v0'"):
        sources.of_minari("mujoco/hopper/expert-v0")


def test_lerobot_columns_are_read_and_put_end_to_end(tmp_path: Path) -> None:
    datasets = pytest.importorskip("lerobot.datasets")
    root = tmp_path / "set"
    one = {"dtype": "float32", "names": None}
    features = {
        "observation.state": {**one, "shape": (2,)},
        "observation.environment_state": {**one, "shape": (3,)},
        "action": {**one, "shape": (2,)},
        "next.reward": {**one, "shape": (1,)},
    }
    made = datasets.LeRobotDataset.create("local/set", fps=10, features=features, root=root, use_videos=False)
    lengths = (5, 3)
    for episode, steps in enumerate(lengths):
        for step in range(steps):
            made.add_frame(
                {
                    "observation.state": rows(steps, 2, episode)[step],
                    "observation.environment_state": rows(steps, 3, 20 + episode)[step],
                    "action": rows(steps, 2, 40 + episode)[step],
                    "next.reward": np.array([step], np.float32),
                    "task": "push",
                }
            )
        made.save_episode()
    made.finalize()

    demos = sources.of_lerobot("local/set", root)
    assert demos.offsets.tolist() == [0, 5, 8]
    assert np.array_equal(demos.observations, np.concatenate([rows(5, 2, 0), rows(3, 2, 1)]))
    assert np.array_equal(demos.actions, np.concatenate([rows(5, 2, 40), rows(3, 2, 41)]))
    assert demos.returns is not None
    assert demos.returns.tolist() == [10.0, 3.0]
    assert demos.truncated.all()
    assert demos.env_id is None

    both = sources.of_lerobot("local/set", root, ["observation.environment_state", "observation.state"], "x:Push")
    assert both.observations.shape == (8, 5)
    assert np.array_equal(both.observations[5:, :3], rows(3, 3, 21))
    assert both.env_id == "x:Push"
    with pytest.raises(DemonstrationError, match=r"no column observation.image.*observation.state"):
        sources.of_lerobot("local/set", root, ["observation.image"])


def test_a_lerobot_dataset_that_is_not_there_is_named_before_anything_is_imported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"meta/info.json is missing"):
        sources.of_lerobot("local/set", tmp_path)
    with pytest.raises(ConfigError, match="a folder that is not named"):
        sources.of_lerobot("local/set", None)
    assert not list(tmp_path.iterdir())


def test_images_are_no_vectors() -> None:
    with pytest.raises(DemonstrationError, match=r"uint8, \(8, 8, 3\) a step"):
        sources._vectors(np.zeros((4, 8, 8, 3), np.uint8), "observations", "a test")
    assert sources._vectors(np.zeros(4), "action", "a test").shape == (4, 1)

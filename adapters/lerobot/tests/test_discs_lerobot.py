"""The task of the discs: what is seen, what the words say, and that neither alone leads to success."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lerobot")

from budwood.api import ConfigError
from budwood_lerobot import discs
from budwood_lerobot.discs.__main__ import main, record
from budwood_lerobot.discs.environment import COLOURS, FPS, RADIUS, SIDE, SPEED, STEPS, Discs, aim


def play(env: Discs, seed: int, choose: Any = None) -> tuple[bool, float]:
    """Success and return of an episode in which the rule goes to the disc ``choose(env)``, by default the right one."""
    env.reset(seed=seed)
    rng, total = np.random.default_rng(seed), 0.0
    disc = env.discs[env.named if choose is None else choose(env)]
    for _ in range(STEPS):
        _, reward, over, cut, info = env.step(aim(env.point, disc, rng))
        total += reward
        assert not cut
        if over:
            return info["is_success"], total
    return False, total


def seen_middle(pixels: Any, colour: tuple[int, int, int]) -> Any:
    """The middle (2,) of what has that colour in a picture."""
    rows, columns = np.nonzero((np.abs(pixels.astype(int) - colour) < 3).all(axis=2))
    return np.array([columns.mean() + 0.5, SIDE - rows.mean() - 0.5]) / SIDE * 2 - 1


def test_the_rule_touches_the_disc_that_is_named() -> None:
    env = Discs()
    assert all(play(env, seed) == (True, 1.0) for seed in range(200))


def test_half_of_the_slow_walks_are_too_slow() -> None:
    """What a clone of walks at 0.6 of full speed has to learn: to go faster."""
    env, late = Discs(), []
    for seed in range(200):
        env.reset(seed=seed)
        rng, steps, over = np.random.default_rng(seed), 0, False
        while not over:
            *_, over, _, info = env.step(aim(env.point, env.discs[env.named], rng, 0.6))
            steps += 1
        assert info["is_success"]
        late.append(steps > STEPS)
    assert 0.3 < np.mean(late) < 0.7


def test_other_words_lead_to_another_disc() -> None:
    env = Discs()
    assert not any(play(env, seed, lambda env: (env.named + 1) % 3)[0] for seed in range(200))
    named = [(env.reset(seed=seed), env.task_description)[1] for seed in range(60)]
    assert set(named) == {f"{colour} disc" for colour in COLOURS}


def test_where_each_disc_lies_is_in_the_picture_alone() -> None:
    env, other = Discs(), Discs()
    for seed in range(20):
        obs, _ = env.reset(seed=seed)
        for middle, colour in zip(env.discs, COLOURS.values(), strict=True):
            np.testing.assert_allclose(seen_middle(obs["pixels"], colour), middle, atol=1.5 / SIDE)
        other.reset(seed=seed)
        other.named = (env.named + 1) % 3  # other words, the same picture
        np.testing.assert_array_equal(other.step(np.zeros(2))[0]["pixels"], env.step(np.zeros(2))[0]["pixels"])
        assert (obs["agent_pos"] == env.point.astype(np.float32)).all()
        assert (np.abs(obs["agent_pos"]) <= 0.1).all(), "which says nothing of where the discs lie"


def test_one_place_for_all_pictures_is_right_in_a_third_of_them() -> None:
    """Going to a fixed direction, or to a colour whatever the words are."""
    env = Discs()
    up = [play(env, seed, lambda env: int(env.discs[:, 1].argmax()))[0] for seed in range(300)]
    red = [play(env, seed, lambda _: 0)[0] for seed in range(300)]
    for share in (np.mean(up), np.mean(red)):
        assert abs(share - 1 / 3) < 4 * (2 / 9 / 300) ** 0.5


def test_the_point_moves_at_most_so_fast_and_stays_in_the_picture() -> None:
    env = Discs()
    for seed in range(20):
        env.reset(seed=seed)
        before = env.point.copy()
        env.step(np.array([5.0, -0.5]))
        np.testing.assert_allclose(env.point - before, [SPEED, -SPEED / 2])
        assert (np.linalg.norm(env.discs, axis=1) > RADIUS + 0.2).all(), "no disc is touched at the start"
    for _ in range(40):
        obs, *_ = env.step(np.array([1.0, 1.0]))
    assert (env.point == 1).all()
    assert obs["pixels"].shape == (SIDE, SIDE, 3)
    assert env.render().shape == (4 * SIDE, 4 * SIDE, 3)


def test_lerobot_makes_it_and_cuts_it_off() -> None:
    from budwood_lerobot.config import EnvConfig
    from budwood_lerobot.environments import vectors_of

    section = EnvConfig.model_validate(
        {"type": "discs", "n_envs": 2, "discover_packages_path": "budwood_lerobot.discs", "episode_length": 3}
    )
    vector = vectors_of(section, 2)["discs"][0]
    vector.reset(seed=[0, 1])
    assert list(vector.call("_max_episode_steps")) == [3, 3]
    assert all(word.endswith(" disc") for word in vector.call("task_description"))
    cuts = [vector.step(np.zeros((2, 2), np.float32))[3].tolist() for _ in range(3)]
    assert cuts == [[False, False], [False, False], [True, True]]
    vector.close()


def loud() -> str:
    raise AssertionError("LeRobot would log a page of what it misses")


def test_demonstrations_hold_what_was_played(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot.datasets import LeRobotDataset

    folder = tmp_path / "discs"
    with monkeypatch.context() as patched:
        patched.setattr("lerobot.datasets.lerobot_dataset.get_safe_default_video_backend", loud)
        main([str(folder), "--episodes", "3", "--seed", "4", "--pace", "0.6"])
    assert "3 episodes of " in capsys.readouterr().out
    rows = LeRobotDataset("local/discs", root=folder)
    assert (rows.num_episodes, rows.fps) == (3, FPS)
    env, row = Discs(), 0
    for seed in range(4, 7):
        obs, _ = env.reset(seed=seed)
        rng, over = np.random.default_rng(seed), False
        while not over:
            action = aim(env.point, env.discs[env.named], rng, 0.6)
            np.testing.assert_array_equal(rows[row]["action"], action)
            np.testing.assert_array_equal(rows[row]["observation.state"], obs["agent_pos"])
            pixels = (rows[row]["observation.image"].permute(1, 2, 0).numpy() * 255).round()
            np.testing.assert_array_equal(pixels, obs["pixels"])
            assert rows[row]["task"] == env.task_description
            obs, _, over, _, info = env.step(action)
            row += 1
        assert info["is_success"]
    assert row == rows.num_frames
    with pytest.raises(ConfigError, match="exists already"):
        record(folder, 1)
    assert discs.DiscsEnv().gym_kwargs["max_episode_steps"] == STEPS

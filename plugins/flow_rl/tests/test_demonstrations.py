"""Demonstrations on disk and their windows, against brute force and against every way a file can be wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from budwood.api import BudwoodError
from budwood_flow_rl import tensor_file
from budwood_flow_rl.demonstrations import KIND, DemonstrationError, Demonstrations, load, save, windows


def made(lengths: tuple[int, ...] = (5, 1, 3), obs_dim: int = 3, action_dim: int = 2) -> Demonstrations:
    rng = np.random.default_rng(0)
    steps, count = sum(lengths), len(lengths)
    return Demonstrations(
        observations=rng.normal(size=(steps, obs_dim)).astype(np.float32),
        actions=rng.normal(size=(steps, action_dim)).astype(np.float32),
        rewards=rng.normal(size=steps).astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        terminated=np.arange(count) % 2 == 0,
        truncated=np.zeros(count, dtype=bool),
        env_id="Hopper-v5",
        env_args={"reset_noise_scale": 0.1},
        about={"source": "a test", "seed": 3},
    )


@pytest.mark.parametrize("horizon", [1, 2, 4, 9])
def test_windows_are_those_of_a_loop(horizon: int) -> None:
    offsets = np.array([0, 5, 6, 9])
    slow = []
    for begin, end in [(0, 5), (5, 6), (6, 9)]:
        for step in range(begin, end):
            slow.append([step + i if step + i < end else end - 1 for i in range(horizon)])
    found = windows(offsets, horizon)
    assert found.tolist() == slow
    assert found.shape == (9, horizon)


def test_windows_of_random_episodes_stay_inside_and_start_at_their_step() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        lengths = rng.integers(1, 12, size=7)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        found = windows(offsets, 5)
        assert found[:, 0].tolist() == list(range(offsets[-1]))
        episode = np.searchsorted(offsets, np.arange(offsets[-1]), side="right")
        assert (np.searchsorted(offsets, found, side="right") == episode[:, None]).all()


def test_file_gives_back_what_was_written_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    demos = made()
    save(tmp_path / "a", demos)
    save(tmp_path / "b", demos)
    back = load(tmp_path / "a")
    for name in ("observations", "actions", "rewards", "offsets", "terminated", "truncated"):
        assert np.array_equal(getattr(back, name), getattr(demos, name)), name
        assert getattr(back, name).dtype == getattr(demos, name).dtype
    assert (back.env_id, back.env_args, back.about) == (demos.env_id, demos.env_args, demos.about)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"], "nothing is left beside them"


def test_returns_are_sums_and_only_finished_episodes_count() -> None:
    demos = made()
    slow = [demos.rewards[begin:end].astype(np.float64).sum() for begin, end in [(0, 5), (5, 6), (6, 9)]]
    assert demos.returns == pytest.approx(slow)
    assert demos.finished.tolist() == [True, False, True]
    assert demos.mean_return == pytest.approx((slow[0] + slow[2]) / 2)
    assert replace(demos, rewards=None).mean_return is None
    assert replace(demos, terminated=np.zeros(3, dtype=bool)).mean_return is None


def test_a_source_without_rewards_is_kept_without(tmp_path: Path) -> None:
    save(tmp_path / "a", replace(made(), rewards=None))
    assert load(tmp_path / "a").rewards is None


BROKEN = {
    "flat observations": ({"observations": np.zeros(9, np.float32)}, "observations have the shape"),
    "missing actions": ({"actions": np.zeros((8, 2), np.float32)}, "9 observations and 8 actions"),
    "missing rewards": ({"rewards": np.zeros(4, np.float32)}, "4 rewards and 9 actions"),
    "float64": ({"actions": np.zeros((9, 2))}, "actions are float64"),
    "no dimension": ({"actions": np.zeros((9, 0), np.float32)}, "actions have the shape"),
    "empty episode": ({"offsets": np.array([0, 5, 5, 9])}, "episode 1 is empty"),
    "short offsets": ({"offsets": np.array([0, 5, 6, 8])}, "do not cover the 9 steps"),
    "ends": ({"terminated": np.zeros(2, dtype=bool)}, "there are 3 episodes"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_shapes_that_do_not_fit_are_refused(name: str) -> None:
    changes, said = BROKEN[name]
    with pytest.raises(DemonstrationError, match=said):
        replace(made(), **changes)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
def test_numbers_that_are_not_finite_are_refused_with_their_place(name: str, bad: float) -> None:
    values = getattr(made(), name).copy()
    values[7] = bad
    with pytest.raises(DemonstrationError, match=f"{name} of step 1 of episode 2 are not finite"):
        replace(made(), **{name: values})


def test_a_file_that_is_missing_or_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(DemonstrationError, match="there is no such file"):
        load(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(DemonstrationError, match="cannot be read as demonstrations"):
        load(tmp_path / "text")
    save_file({"x": np.zeros(3)}, tmp_path / "other")
    with pytest.raises(DemonstrationError, match="a safetensors file of something else"):
        load(tmp_path / "other")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DemonstrationError):
        load(tmp_path / "folder")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save(path, made())
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(DemonstrationError, match=r"cannot be read|altered"):
        load(path)
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(DemonstrationError, match="altered"):
        load(path)


@pytest.mark.parametrize("told", [b"Hopper-v5", b"reset_noise_scale", b"a test", b"mean_return"])
def test_a_header_that_was_altered_is_refused(tmp_path: Path, told: bytes) -> None:
    path = tmp_path / "a"
    save(path, made())
    whole = bytearray(path.read_bytes())
    whole[whole.index(told)] ^= 1
    path.write_bytes(bytes(whole))
    with pytest.raises(DemonstrationError, match="altered"):
        load(path)


@pytest.mark.parametrize("lost", ["env_id", "env_args", "about"])
def test_a_header_without_a_key_is_refused(tmp_path: Path, lost: str) -> None:
    header = {"env_id": None, "env_args": {}, "about": {}}
    header.pop(lost)
    tensor_file.write(tmp_path / "a", KIND, {"actions": np.zeros((1, 1), np.float32)}, header)
    with pytest.raises(DemonstrationError, match=f"its header lacks {lost}"):
        load(tmp_path / "a")


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    save(tmp_path / "a", made())
    assert load_file(tmp_path / "a")["observations"].shape == (9, 3)


def test_writing_where_it_is_impossible_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BudwoodError, match="writing failed"):
        save(tmp_path / "file" / "demos", made())

"""Learning from episodes in several processes, each with a part of the environments, is learning in one with all of them.

The processes here are forked from the test, so that none imports LeRobot again; they find each other over gloo, as others do.
Four of them:  pytest adapters/lerobot/tests/test_processes_online.py -m slow
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from points import Gaussian, Reach, Tokens

from budwood.api import ConfigError, Processes
from budwood.checkpoint import Checkpoints
from budwood.forking import forked
from budwood.processes import joined

pytest.importorskip("lerobot")
from lerobot.envs.utils import FreezeAfterEpisodeEnd
from online_runs import Brings, Events, built, numbers

from budwood_lerobot.environments import numbered

torch.set_num_threads(1)

ENVIRONMENTS, DECISIONS, UPDATES = 4, 16, 4
CRITIC: dict[str, Any] = {
    # 24 does not divide 64: minibatches fall differently on the processes, and the last one is short
    "rollout": DECISIONS, "minibatch": 24, "epochs": 3, "learning_rate": 3e-3, "target_kl": 0.04, "ent_coef": 0.01,
    "total_steps": UPDATES * DECISIONS * ENVIRONMENTS,
}  # fmt: skip
GROUPS: dict[str, Any] = {
    "advantage": "group", "group_size": 2, "rollout": 8, "minibatch": 8, "epochs": 2, "learning_rate": 3e-3,
    "normalize_advantage": "rollout", "total_steps": 70,
}  # fmt: skip


def trained(
    policy: Any, settings: Mapping[str, Any], folder: Path | None = None, restored: Any = None, n: int = ENVIRONMENTS
) -> dict[str, Any]:
    """What a run has come to, in plain arrays; with a ``folder``, a checkpoint there after every update."""
    with joined() as processes:
        trainer = built(Brings(policy), env={"n_envs": n}, processes=processes, **settings)
        states, rollouts = [], []
        store = None if folder is None else Checkpoints(folder, 99)

        def boundary(steps: int) -> bool:
            state = trainer.state_dict()
            states.append((steps, dict(leaves(state))))
            if store is not None and processes.first:
                store.save(steps, {"trainer": state}, {})
            return True

        events = Events(boundary, rollouts=True)
        if restored is not None:
            assert list(trainer.load_state_dict(restored["trainer"])) == []
        trainer.fit(events)
        for shown in events.shown:
            rollouts.append({**shown.obs, "actions": shown.actions, "rewards": shown.rewards, "values": shown.values})
        trainer.close()
    return {"states": states, "rollouts": rollouts, "numbers": numbers(events)}


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key in sorted(tree, key=str):
            yield from leaves(tree[key], f"{path}.{key}")
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from leaves(value, f"{path}[{i}]")
    else:
        yield path, tree.numpy().copy() if isinstance(tree, torch.Tensor) else tree


def furthest(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The largest difference of two trees, in parts of 1 or of the largest number; what is no float must be equal."""
    assert list(one) == list(other)
    worst = 0.0
    for name, a in one.items():
        b = other[name]
        if isinstance(a, float | np.ndarray) and np.asarray(a).dtype.kind == "f":
            x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
            assert x.shape == y.shape, name
            assert (np.isnan(x) == np.isnan(y)).all(), name
            if x.size:
                worst = max(worst, float(np.nanmax(np.abs(x - y)) / max(1.0, np.nanmax(np.abs(x)))))
        else:
            assert np.array_equal(a, b), name
    return worst


KINDS = {"critic": (Gaussian, CRITIC), "groups": (Tokens, GROUPS)}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """With groups, to the left of the middle every reward is 0: such a group teaches nothing, nor do its samples."""
    real = Reach._distance
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "groups":
            patched.setattr(Reach, "_distance", lambda self: 1.0 if self.goal[0] < 0 else real(self))
        yield request.param


@pytest.fixture(scope="module")
def runs(kind: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """The same run in one process, and in two, whose checkpoints are in a folder."""
    folder = tmp_path_factory.mktemp(kind)
    policy, settings = KINDS[kind]
    two = forked(2, lambda: trained(policy, settings, folder))
    assert furthest(dict(leaves(two[0]["numbers"])), dict(leaves(two[1]["numbers"]))) == 0, "all are told the same"
    return trained(policy, settings), two[0], folder


def test_two_processes_see_the_same_samples_and_take_the_same_updates(runs: tuple[Any, Any, Path]) -> None:
    one, two, _ = runs
    before, after = one["rollouts"][0], two["rollouts"][0]
    assert before["actions"].shape[1] == ENVIRONMENTS
    for (
        name
    ) in before:  # what was seen and done at first is the same to the bit; credit at a time limit is the critic's
        bound = {"rewards": 1e-6, "values": 1e-6}.get(name, 0)
        np.testing.assert_allclose(before[name], after[name], rtol=0, atol=bound, err_msg=name)
    assert len(one["states"]) == len(two["states"]) >= 3
    for i, ((steps, whole), (others, parts)) in enumerate(zip(one["states"], two["states"], strict=True)):
        assert steps == others
        assert furthest(whole, parts) < (1e-6 if i == 0 else 1e-5)
    assert furthest(weights(one["states"][0]), weights(one["states"][-1])) > 1e-3, "it learns"


def weights(state: tuple[int, dict[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in state[1].items() if name.startswith(".policy")}


def test_what_is_logged_is_of_all_environments(runs: tuple[Any, Any, Path], kind: str) -> None:
    one, two, _ = runs
    assert furthest(dict(leaves(one["numbers"])), dict(leaves(two["numbers"]))) < 1e-5
    rows = [row for _, row in one["numbers"]]
    if kind == "critic":
        assert any("train/early_stop" in row for row in rows), "target_kl ends an update, in both at one minibatch"
        assert any("train/early_stop" not in row for row in rows)
        assert all("train/explained_variance" in row for row in rows)
    else:
        assert any(0 < row["rollout/identical_share"] < 1 for row in rows), "a process had nothing to learn from"


@pytest.mark.parametrize("count", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_another_number_of_processes_goes_on_from_what_two_wrote(
    runs: tuple[Any, Any, Path], kind: str, count: int
) -> None:
    if kind == "groups" and count == 4:
        pytest.skip("two groups are no four parts")
    one, _, folder = runs
    store = Checkpoints(folder, 99)
    saved = store.load(store.at(one["states"][0][0]))[0]
    policy, settings = KINDS[kind]

    def rest() -> Any:
        return trained(policy, settings, restored=saved)

    found = rest() if count == 1 else forked(count, rest)[0]
    assert [at for at, _ in found["states"]] == [at for at, _ in one["states"][1:]]
    assert furthest(found["states"][-1][1], one["states"][-1][1]) < 1e-5


class Draws(Gaussian):
    """In process 1 it draws a number more than in process 0."""

    def act(self, obs: Any, deterministic: bool = False) -> Any:
        if os.environ.get("RANK") == "1":
            torch.rand(1)
        return super().act(obs, deterministic)


def test_processes_that_drift_apart_are_told() -> None:
    with pytest.raises(
        RuntimeError, match="drifted apart: torch's global generator in process 1 is not that of process 0"
    ):
        forked(2, lambda: trained(Draws, CRITIC))


class Part(Processes):
    """One of ``count`` processes, before any of them has anything to say to another."""

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count


@pytest.mark.parametrize(
    ("n", "settings", "message"),
    [
        (3, {}, "3 environments cannot be divided among 2 processes"),
        (6, {"advantage": "group", "group_size": 2}, "3 environments in each of 2 processes make no whole groups of 2"),
    ],
)
def test_what_cannot_be_divided_is_refused(n: int, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(Brings(Tokens if settings else Gaussian), env={"n_envs": n}, processes=Part(0, 2), **settings)


def test_environments_that_number_themselves_are_numbered_through() -> None:
    """As those of LIBERO, which take their own of some fixed initial states, and another at every reset."""

    class Fixed(Reach):
        def __init__(self, number: int, of: int) -> None:
            super().__init__()
            self.init_state_id, self._reset_stride = number, of

    vector = SyncVectorEnv([lambda i=i: FreezeAfterEpisodeEnd(Fixed(i, 2)) for i in range(2)])
    numbered(vector, 2, 6)
    assert vector.get_attr("init_state_id") == (2, 3)
    assert vector.get_attr("_reset_stride") == (6, 6)
    plain = SyncVectorEnv([Reach, Reach])
    numbered(plain, 2, 6)
    assert not hasattr(plain.envs[0], "init_state_id")

"""PPO in several processes is PPO in one: the same samples, the same update, and checkpoints that any number goes on from.

Two processes by default. Four, A2C, and plugins:  pytest tests/test_processes_sb3.py -m slow
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import budwood
from budwood import config
from budwood.api import BudwoodError, Processes
from budwood.checkpoint import Checkpoints
from budwood.folder import RunFolder, list_runs
from budwood.planning import explain, plan

pytest.importorskip("budwood_sb3")

ROLLOUT = 256
PPO: dict[str, Any] = {
    "name": "together",
    "seed": 3,
    "device": "cpu",
    "trainer": {
        "kind": "sb3",
        "algo": "ppo",
        "total_timesteps": 2 * ROLLOUT,
        # 48 does not divide 256: minibatches fall differently on the processes, and the last one is short
        "args": {
            "n_steps": 64,
            "batch_size": 48,
            "n_epochs": 4,
            "learning_rate": 3e-3,
            "target_kl": 3e-3,
            "policy_kwargs": {"net_arch": [16]},
        },
    },
    "env": {"id": "Pendulum-v1", "n_envs": 4, "args": {"g": 9.0}, "normalize": {"obs": True, "reward": True}},
    "evaluation": {"every": ROLLOUT, "episodes": 2},
    "checkpoint": {"every": ROLLOUT, "keep": 10},
    "tracking": {"enabled": False},
}
A2C: dict[str, Any] = {
    **PPO,
    "trainer": {"kind": "sb3", "algo": "a2c", "total_timesteps": 256, "args": {"n_steps": 32}},
}
SHAPED: dict[str, Any] = {
    **PPO,
    "env": {"id": "budwood_reward_shaping.reach_budget:ReachBudget-v0", "n_envs": 4},
    "plugins": {
        "reward_shaping": {
            "terms": ["speed", "effort"],
            "criteria": [{"name": "always", "source": "step", "stat": "sum", "op": ">=", "threshold": 0.0}],
            "outer": {"inner_iterations": 1, "episodes": 1},
        }
    },
}
FLOW: dict[str, Any] = {
    **PPO,
    "trainer": {
        "kind": "sb3",
        "algo": "ppo",
        "total_timesteps": 400,
        "args": {"n_steps": 50, "batch_size": 50, "n_epochs": 2},
    },
    "env": {"id": "budwood_reward_shaping.reach_budget:ReachBudget-v0", "n_envs": 4},
    "checkpoint": {"every": 200, "keep": 10},
    "evaluation": {"every": 200, "episodes": 2},
    "plugins": {"flow_rl": {"family": {"hidden": [16, 16, 16]}, "chunk": {"horizon": 2, "execute": 2}}},
}
SHAPED_FLOW: dict[str, Any] = {
    **FLOW,
    "trainer": {**FLOW["trainer"], "total_timesteps": 800},
    "plugins": {
        **FLOW["plugins"],
        "reward_shaping": {
            "terms": ["speed", "effort"],
            "criteria": ["distance"],
            "outer": {"steps": 3, "inner_iterations": 2, "rollouts": 1, "episodes": 2},
            "weights": {"w_task": 1.0, "scale": None},
            "task_mode": "fraction",
        },
    },
}
NOT_COMPARED = ("episode_times", "t", "time/fps", "time/time_elapsed", "seconds", "spaces")
"""Times, besides those called cpu; and the generators of action spaces, which environments may share and from which nothing
is drawn."""


def launched(count: int, folder: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "budwood", "launch", "-n", str(count), *words],
        cwd=folder,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def state(run: RunFolder, steps: int) -> dict[str, Any]:
    store = Checkpoints(run.checkpoints, 1)
    return store.load(store.at(steps))[0]


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything of a state that is to be the same."""
    if isinstance(tree, Mapping):
        for key in sorted(tree, key=str):
            if key not in NOT_COMPARED and "/cpu/" not in str(key):
                yield from leaves(tree[key], f"{path}.{key}")
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from leaves(value, f"{path}[{i}]")
    else:
        yield path, tree


def furthest(one: Any, other: Any) -> float:
    """The largest relative difference of two states; what is no float must be equal."""
    pairs = list(zip(leaves(one), leaves(other), strict=True))
    worst = 0.0
    for (path, a), (same, b) in pairs:
        assert path == same
        if isinstance(a, np.ndarray | np.floating | float | torch.Tensor) and np.asarray(a).dtype.kind == "f":
            x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
            assert x.shape == y.shape, path
            if x.size:
                worst = max(worst, float(np.abs(x - y).max() / max(1.0, np.abs(x).max())))
        else:
            assert np.array_equal(a, b), path
    return worst


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, RunFolder]:
    """PPO in one process, and in two."""
    folder = tmp_path_factory.mktemp("together")
    return both(PPO, folder)


def both(config: dict[str, Any], folder: Path) -> tuple[RunFolder, RunFolder]:
    budwood.run({**config, "output": str(folder / "one")})
    (folder / "run.yaml").write_text(yaml.safe_dump({**config, "output": str(folder / "two")}))
    launched(2, folder, "run", "run.yaml", "processes=2")
    return list_runs(folder / "one")[0], list_runs(folder / "two")[0]


def test_two_processes_see_the_same_samples_and_take_the_same_updates(runs: tuple[RunFolder, RunFolder]) -> None:
    one, two = (state(run, ROLLOUT) for run in runs)
    # The first rollout is the same to the bit: environments, observations, running statistics, generators.
    for part in ("last", "envs", "statistics", "generators", "episodes"):
        assert furthest(one["trainer"][part], two["trainer"][part]) == 0.0, part
    assert furthest(one["trainer"], two["trainer"]) < 1e-6  # after two epochs of updates
    assert furthest(one["session"], two["session"]) < 1e-4  # the spread of two returns of hundreds
    updates = one["trainer"]["counters"]["_n_updates"]
    assert updates == 2  # of 4 epochs: target_kl ended them, in both at the same minibatch
    assert furthest(*(state(run, 2 * ROLLOUT)["trainer"] for run in runs)) < 1e-5


def test_what_two_export_is_stable_baselines3s_own(runs: tuple[RunFolder, RunFolder]) -> None:
    from stable_baselines3 import PPO as NATIVE
    from stable_baselines3.common.running_mean_std import RunningMeanStd

    export = runs[1].folder / "export"
    model = NATIVE.load(export / "model.zip", device="cpu")
    assert (type(model), model.num_timesteps) == (NATIVE, 2 * ROLLOUT)
    statistics = pickle.loads((export / "vecnormalize.pkl").read_bytes())
    assert {type(statistics.obs_rms), type(statistics.ret_rms)} == {RunningMeanStd}


def test_one_process_goes_on_from_what_two_wrote(runs: tuple[RunFolder, RunFolder], tmp_path: Path) -> None:
    one, two = runs
    run = first_half(two, tmp_path)
    budwood.resume(str(run.folder), ["processes=1"])
    assert furthest(state(one, 2 * ROLLOUT)["trainer"], state(run, 2 * ROLLOUT)["trainer"]) < 1e-5


@pytest.mark.slow
def test_four_processes_go_on_from_what_two_wrote(runs: tuple[RunFolder, RunFolder], tmp_path: Path) -> None:
    one, two = runs
    run = first_half(two, tmp_path)
    launched(4, tmp_path, "resume", str(run.folder), "processes=4")
    assert furthest(state(one, 2 * ROLLOUT)["trainer"], state(run, 2 * ROLLOUT)["trainer"]) < 1e-5


def first_half(run: RunFolder, to: Path) -> RunFolder:
    """A copy of ``run`` that has only its first checkpoint."""
    copy = RunFolder(Path(shutil.copytree(run.folder, to / run.run_id)))
    for later in list(copy.checkpoints.glob("step_*")):
        if later.name != f"step_{ROLLOUT:012d}":
            shutil.rmtree(later)
    copy.write_status(status="killed")
    return copy


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [A2C, SHAPED, FLOW, SHAPED_FLOW], ids=["a2c", "reward_shaping", "flow_rl", "flow_rl_and_reward_shaping"]
)
def test_likewise_for_a2c_and_for_plugins_that_search_weights_and_tune_flows(
    config: dict[str, Any], tmp_path: Path
) -> None:
    one, two = both(config, tmp_path)
    last = config["trainer"]["total_timesteps"]
    for part, bound in (("trainer", 1e-5), ("session", 1e-4)):
        assert furthest(state(one, last)[part], state(two, last)[part]) < bound


@pytest.mark.parametrize("config", [SHAPED, FLOW, SHAPED_FLOW], ids=["reward_shaping", "flow_rl", "both"])
@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_what_the_page_says_of_plugins_is_what_explain_says(config: dict[str, Any], algo: str) -> None:
    args = {} if algo == "a2c" else config["trainer"]["args"]
    made = {**config, "trainer": {**config["trainer"], "algo": algo, "args": args}, "processes": 2}
    assert explain(made).bindings


class Part(Processes):
    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count


@pytest.mark.parametrize("count", [2, 4])
def test_a_state_divided_and_joined_again_is_the_same(runs: tuple[RunFolder, RunFolder], count: int) -> None:
    from budwood_sb3 import shards

    whole = state(runs[0], ROLLOUT)["trainer"]
    parts = [shards.own(whole, Part(rank, count), 4) for rank in range(count)]
    assert [len(part["last"]["_last_obs"]) for part in parts] == [4 // count] * count
    joined = shards.joined(parts[0], [shards.part_of(part) for part in parts])
    assert furthest(whole, joined) == 0.0


def test_parameters_are_not_sent_for_a_checkpoint() -> None:
    """They are the same everywhere, and what is sent is as large in every process as in the one that has the most to tell."""

    class Sending(Part):
        def to_first(self, value: Any) -> list[Any]:
            self.sent = value
            return [value, value]

    processes = Sending(0, 2)
    trainer = plan(config.load(PPO), None, processes=processes).build_trainer()
    state = trainer.state_dict()
    trainer.close()
    assert "parameters" in state
    assert processes.sent.keys() == {"last", "envs"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trainer": {"kind": "sb3", "algo": "sac", "total_timesteps": 8}}, "SAC draws from one replay buffer"),
        ({"trainer": {"kind": "sb3", "algo": "trpo", "total_timesteps": 8}}, "no place to sum gradients"),
        ({"env": {"id": "Pendulum-v1", "n_envs": 3}}, "3 environments cannot be divided among 2 processes"),
    ],
)
def test_what_cannot_be_divided_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BudwoodError, match=said):
        plan(config.load({**PPO, **change}), None, processes=Part(0, 2)).build_trainer()

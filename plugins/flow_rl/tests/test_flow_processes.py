"""Flow policies on Stable-Baselines3 in two processes, each with half of the environments, learn as in one with all of them.

The processes are forked from the test and find each other over gloo; budwood launch starts them as it starts any others, which
tests/test_processes_sb3.py shows.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("budwood_sb3")

from budwood import resume, run
from budwood.checkpoint import Checkpoints
from budwood.folder import RunFolder, list_runs
from budwood.forking import forked
from budwood_flow_rl import point

torch.set_num_threads(1)
ROOT = Path(__file__).parents[3]
ROLLOUT, UPDATES = 64, 3
KERNELS = {
    "noise": {
        "kernel": {"name": "noisy_euler"},
        "schedule": {"noise": "learn_decay", "critic_warmup": 1},
        # the distance from the start flow, from zeros: from noise each process would draw its own
        "regularisers": {"w2": 0.1},
        "parity": {"zero_x0": True},
    },
    "sde": {"kernel": {"name": "flow_sde"}, "schedule": {"critic_warmup": 1}},
}


@pytest.fixture(scope="module")
def flow(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("flow")
    point.pretrain(folder, point.demonstrations(100), steps=100)
    return folder


def config(flow: Path, output: Path, **section):
    """The shipped configuration of the point task, smaller."""
    made = yaml.safe_load((ROOT / "configs" / "flow_rl" / "point.yaml").read_text())
    made["trainer"]["total_timesteps"] = UPDATES * ROLLOUT
    # 24 does not divide 64: minibatches fall differently on the processes, and the last one is short
    made["trainer"]["args"] |= {"n_steps": ROLLOUT // 4, "batch_size": 24, "n_epochs": 2}
    made["env"] |= {"n_envs": 4, "normalize": {"obs": False, "reward": True}}
    made["plugins"]["flow_rl"] |= {"init": str(flow), "critic": {"hidden": [32, 32, 32]}, **section}
    return {
        **made,
        "output": str(output),
        "device": "cpu",
        "evaluation": {"every": 2 * ROLLOUT, "episodes": 8},
        "checkpoint": {"every": ROLLOUT, "keep": 10},
        "tracking": {"enabled": False},
    }


@pytest.fixture(scope="module", params=KERNELS)
def runs(request, flow, tmp_path_factory) -> tuple[RunFolder, RunFolder]:
    """The same run in one process and in two."""
    folder = tmp_path_factory.mktemp(request.param)
    section = KERNELS[request.param]
    run(config(flow, folder / "one", **section))  # first, so that what it imports is there for the others
    forked(2, lambda: run(config(flow, folder / "two", **section), processes=2).first)
    return list_runs(folder / "one")[0], list_runs(folder / "two")[0]


def weights(run: RunFolder, steps: int) -> dict[str, np.ndarray]:
    store = Checkpoints(run.checkpoints, 1)
    policy = store.load(store.at(steps))[0]["trainer"]["parameters"]["policy"]
    return {name: value.numpy() for name, value in policy.items()}


def furthest(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def logged(run: RunFolder) -> dict[tuple[int, str], float]:
    """(step, name) -> value of everything that does not measure time."""
    numbers = {}
    for line in (run.folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "metrics":
            numbers |= {(event["step"], name): value for name, value in event["data"].items()}
    return {key: value for key, value in numbers.items() if not key[1].startswith(("time/", "flow_rl/cpu/"))}


def test_two_processes_take_the_updates_of_one(runs):
    one, two = runs
    for update in range(1, UPDATES + 1):
        apart = furthest(weights(one, update * ROLLOUT), weights(two, update * ROLLOUT))
        assert apart < (1e-6 if update < 3 else 1e-5), f"after update {update}"
    assert furthest(weights(one, 2 * ROLLOUT), weights(one, ROLLOUT)) > 1e-4, "the actor learns after the first update"


def test_what_is_logged_is_of_the_rows_of_all(runs):
    whole, parts = (logged(run) for run in runs)
    assert whole.keys() == parts.keys()
    names = {name for _, name in whole}
    assert {
        "flow_rl/joint_kl",
        "flow_rl/ratio_worst",
        "flow_rl/first_ratio_worst",
        "flow_rl/return_with_noise",
    } <= names
    for (step, name), value in whole.items():
        bound = 1e-4 if name.endswith("_worst") else 1e-5
        assert parts[step, name] == pytest.approx(value, rel=bound, abs=1e-6, nan_ok=True), f"{name} at {step}"


def test_one_process_goes_on_from_what_two_wrote(runs, tmp_path):
    one, two = runs
    again = RunFolder(Path(shutil.copytree(two.folder, tmp_path / two.run_id)))
    for later in list(again.checkpoints.glob("step_*")):
        if later.name != f"step_{2 * ROLLOUT:012d}":
            shutil.rmtree(later)
    again.write_status(status="killed")
    resume(str(again.folder), ["processes=1"])
    assert furthest(weights(one, UPDATES * ROLLOUT), weights(again, UPDATES * ROLLOUT)) < 1e-5

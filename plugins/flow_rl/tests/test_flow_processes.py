"""Flow policies on Stable-Baselines3 in two processes, each with half of the environments, learn as in one with all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("budwood_sb3")

from in_two import both, furthest, gone_on_alone, logged_alike, weights

from budwood.folder import RunFolder
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
    return both(tmp_path_factory.mktemp(request.param), lambda output: config(flow, output, **KERNELS[request.param]))


def test_two_processes_take_the_updates_of_one(runs):
    one, two = runs
    for update in range(1, UPDATES + 1):
        apart = furthest(weights(one, update * ROLLOUT), weights(two, update * ROLLOUT))
        assert apart < (1e-6 if update < 3 else 1e-5), f"after update {update}"
    assert furthest(weights(one, 2 * ROLLOUT), weights(one, ROLLOUT)) > 1e-4, "the actor learns after the first update"


def test_what_is_logged_is_of_the_rows_of_all(runs):
    assert logged_alike(*runs, 1e-5) >= {
        "flow_rl/joint_kl",
        "flow_rl/ratio_worst",
        "flow_rl/first_ratio_worst",
        "flow_rl/return_with_noise",
    }


def test_one_process_goes_on_from_what_two_wrote(runs, tmp_path):
    one, two = runs
    again = gone_on_alone(two, 2 * ROLLOUT, tmp_path)
    assert furthest(weights(one, UPDATES * ROLLOUT), weights(again, UPDATES * ROLLOUT)) < 1e-5

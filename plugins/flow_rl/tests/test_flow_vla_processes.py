"""A tiny SmolVLA in LeRobot's online loop in two processes, each with half of the environments, learns as in one with all.

Two minutes, for both kernels:  pytest plugins/flow_rl/tests/test_flow_vla_processes.py -m slow
"""

from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("lerobot")

from in_two import both, furthest, gone_on_alone, logged_alike, weights

from budwood.folder import RunFolder
from budwood_lerobot import tiny

torch.set_num_threads(1)
ROOT = Path(__file__).parents[3]
ROLLOUT, UPDATES = 8, 3
KERNELS = {"sde": {"name": "flow_sde"}, "noise": {"name": "noisy_euler"}}

pytestmark = pytest.mark.slow


def config(policy: Path, output: Path, kernel):
    made = yaml.safe_load((ROOT / "configs" / "flow_rl" / "discs.yaml").read_text())
    # 3 does not divide 8: minibatches fall differently on the processes, and the last one is short
    made["trainer"] |= {"total_steps": UPDATES * ROLLOUT, "rollout": ROLLOUT // 4, "minibatch": 3, "epochs": 2}
    made["trainer"] |= {"critic_warmup": 1, "target_kl": None, "learning_rate": 1e-4}
    made["trainer"]["policy"]["path"] = str(policy)
    made["env"]["n_envs"] = 4
    made["plugins"]["flow_vla"]["kernel"] = KERNELS[kernel]
    return {
        **made,
        "output": str(output),
        "device": "cpu",
        "evaluation": {"every": 2 * ROLLOUT, "episodes": 2},
        "checkpoint": {"every": ROLLOUT, "keep": 10},
        "tracking": {"enabled": False},
    }


@pytest.fixture(scope="module", params=KERNELS)
def runs(request, tmp_path_factory) -> tuple[RunFolder, RunFolder]:
    """The same run in one process and in two."""
    folder = tmp_path_factory.mktemp("runs")
    assert tiny.write(folder / "policy", "discs") < 300_000
    return both(folder, lambda output: config(folder / "policy", output, request.param))


def test_two_processes_take_the_updates_of_one(runs):
    one, two = runs
    for update in range(1, UPDATES + 1):
        apart = furthest(weights(one, update * ROLLOUT), weights(two, update * ROLLOUT))
        assert apart < (1e-6 if update == 1 else 1e-5), f"after update {update}"
    assert furthest(weights(one, ROLLOUT), weights(one, UPDATES * ROLLOUT)) > 1e-4, "it learns"
    names = logged_alike(one, two, 1e-4)
    assert names >= {"flow_vla/joint_kl", "flow_vla/first_ratio_worst", "train/value_loss"}


def test_one_process_goes_on_from_what_two_wrote(runs, tmp_path):
    one, two = runs
    again = gone_on_alone(two, 2 * ROLLOUT, tmp_path)
    assert furthest(weights(one, UPDATES * ROLLOUT), weights(again, UPDATES * ROLLOUT)) < 1e-5

"""A tiny SmolVLA in LeRobot's online loop in two processes, each with half of the environments, learns as in one with all.

Two minutes, for both kernels:  pytest plugins/flow_rl/tests/test_flow_vla_processes.py -m slow
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("lerobot")

from budwood import resume, run
from budwood.checkpoint import Checkpoints
from budwood.folder import RunFolder, list_runs
from budwood.forking import forked
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
    run(config(folder / "policy", folder / "one", request.param))
    forked(2, lambda: run(config(folder / "policy", folder / "two", request.param), processes=2).first)
    return list_runs(folder / "one")[0], list_runs(folder / "two")[0]


def weights(run: RunFolder, steps: int) -> dict[str, torch.Tensor]:
    store = Checkpoints(run.checkpoints, 1)
    return store.load(store.at(steps))[0]["trainer"]["policy"]


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def logged(run: RunFolder) -> dict[tuple[int, str], float]:
    """(step, name) -> value of everything that does not measure time."""
    numbers = {}
    for line in (run.folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "metrics":
            numbers |= {(event["step"], name): value for name, value in event["data"].items()}
    return {key: value for key, value in numbers.items() if not key[1].startswith("time/")}


def test_two_processes_take_the_updates_of_one(runs):
    one, two = runs
    for update in range(1, UPDATES + 1):
        apart = furthest(weights(one, update * ROLLOUT), weights(two, update * ROLLOUT))
        assert apart < (1e-6 if update == 1 else 1e-5), f"after update {update}"
    assert furthest(weights(one, ROLLOUT), weights(one, UPDATES * ROLLOUT)) > 1e-4, "it learns"
    whole, parts = logged(one), logged(two)
    assert whole.keys() == parts.keys()
    assert {"flow_vla/joint_kl", "flow_vla/first_ratio_worst", "train/value_loss"} <= {name for _, name in whole}
    for (step, name), value in whole.items():
        bound = 1e-3 if name.endswith("_worst") else 1e-4
        assert parts[step, name] == pytest.approx(value, rel=bound, abs=1e-5, nan_ok=True), f"{name} at {step}"


def test_one_process_goes_on_from_what_two_wrote(runs, tmp_path):
    one, two = runs
    again = RunFolder(Path(shutil.copytree(two.folder, tmp_path / two.run_id)))
    for later in list(again.checkpoints.glob("step_*")):
        if later.name != f"step_{2 * ROLLOUT:012d}":
            shutil.rmtree(later)
    again.write_status(status="killed")
    resume(str(again.folder), ["processes=1"])
    assert furthest(weights(one, UPDATES * ROLLOUT), weights(again, UPDATES * ROLLOUT)) < 1e-5

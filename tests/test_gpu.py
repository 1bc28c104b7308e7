"""On a GPU: `pytest tests/test_gpu.py -m gpu`. A run trains, checkpoints and resumes there; its state is the CPU's format."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import budwood
from budwood.checkpoint import Checkpoints
from budwood.folder import find_run, list_runs

torch = pytest.importorskip("torch")
pytest.importorskip("budwood_sb3")
pytest.importorskip("budwood_reward_shaping")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]


def searching(output: Path, algo: str, args: dict[str, Any], outer: dict[str, Any] | None) -> dict[str, Any]:
    never = {"name": "never", "source": "step", "stat": "sum", "op": "<=", "threshold": 0.0}
    return {
        "seed": 1,
        "device": "cuda",
        "trainer": {"kind": "sb3", "algo": algo, "total_timesteps": 1024, "args": args},
        "env": {"id": "budwood_reward_shaping.reach_budget:ReachBudget-v0", "n_envs": 4},
        "plugins": {
            "reward_shaping": {
                "terms": ["speed", "effort"],
                "criteria": [never],
                "weights": {"scale": None},
                "outer": outer,
            }
        },
        "evaluation": {"every": 512, "episodes": 2},
        "checkpoint": {"every": 512, "keep": 3},
        "tracking": {"enabled": False},
        "output": str(output),
    }


CASES = {
    "ppo": ({"n_steps": 64, "batch_size": 64, "n_epochs": 2}, {"steps": 2, "inner_iterations": 2, "episodes": 2}),
    "sac": ({"learning_starts": 100, "train_freq": 8}, None),
}


@pytest.mark.parametrize("algo", CASES)
def test_a_run_trains_on_the_gpu_and_resumes_there(algo: str, tmp_path: Path) -> None:
    args, outer = CASES[algo]
    result = budwood.run(searching(tmp_path, algo, args, outer))
    run = find_run(result.run_id, tmp_path)
    assert result.status == "finished"
    assert all(math.isfinite(value) for value in result.metrics.values())

    again = budwood.resume(str(run.folder), ["trainer.total_timesteps=1536"])
    assert (again.status, run.status["steps"]) == ("finished", 1536)
    assert any("On cuda the sums of an update may round differently" in note for note in again.notes)

    found = Checkpoints(run.checkpoints, 3).latest()
    assert found is not None
    state = Checkpoints(run.checkpoints, 3).load(found[0])[0]
    devices = {tensor.device.type for tensor in state["trainer"]["parameters"]["policy"].values()}
    assert devices == {"cpu"}, "a checkpoint can be read where there is no GPU"


def test_the_hypergradient_is_that_of_the_cpu() -> None:
    import numpy as np
    from stable_baselines3 import PPO

    from budwood.api import Rollout
    from budwood_reward_shaping.hypergrad import reward_adjoint
    from budwood_reward_shaping.policy_steps import PolicySteps
    from budwood_sb3.bridge import LogProb

    model = PPO("MlpPolicy", "Pendulum-v1", seed=0, n_steps=64, batch_size=32, n_epochs=2, device="cpu").learn(64)
    rng, steps, n = np.random.default_rng(0), 48, 4
    starts = (rng.random((steps, n)) < 0.15).astype(np.float32)
    starts[0] = 1

    def adjoint(device: str, order: int) -> Any:
        draw = np.random.default_rng(1)
        obs = draw.normal(size=(steps, n, 3)).astype(np.float32)
        rollout = Rollout(
            obs=obs, actions=draw.normal(size=(steps, n, 1)).astype(np.float32),
            terms=(draw.random((steps, n, 2)) < 0.3).astype(np.float64), columns=(), rewards=np.zeros((steps, n)),
            values=np.zeros((steps, n)), advantages=draw.normal(size=(steps, n)), episode_starts=starts,
            last_dones=np.ones(n, dtype=bool), gamma=0.97, gae_lambda=0.9, log_prob=LogProb(model.policy.to(device)),
            after_transforms=lambda: None, raw_obs=obs, optimizer=model.policy.optimizer,
        )  # fmt: skip
        return reward_adjoint(rollout, 0, PolicySteps(alpha=0.05, order=order))

    for order in (0, 3):
        one, other = adjoint("cpu", order), adjoint("cuda", order)
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4 * float(np.abs(one).max()))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


ALONE = """
import torch
from budwood.processes import Joined

processes = Joined(0, 1, 0, 60.0)
numbers = torch.arange(5.0, device="cuda")
assert processes._nccl
assert torch.equal(processes.sum(numbers.clone()), numbers)
assert processes.gather({"rank": 0}) == [{"rank": 0}] and processes.from_first("x") == "x"
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(5, 1).cuda(), device_ids=[0])
model(numbers).sum().backward()
assert model.module.weight.grad is not None
processes.leave(None)
print("NCCL", torch.cuda.nccl.version())
"""


def test_tensors_on_a_gpu_of_its_own_go_over_nccl() -> None:
    """One process: two of them would need two GPUs. That NCCL is asked for, joins, sums and serves DistributedDataParallel."""
    group = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        env={**os.environ, **group},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("NCCL")


def test_two_processes_on_one_gpu_take_the_update_of_one(tmp_path: Path) -> None:
    """NCCL refuses two processes on one GPU: their gradients go over gloo."""
    found = []
    for count in (1, 2):
        config = searching(tmp_path / str(count), "ppo", {"n_steps": 64, "batch_size": 64, "n_epochs": 2}, None)
        config["checkpoint"] = {"every": 256, "keep": 9}
        (tmp_path / "run.yaml").write_text(json.dumps(config))
        words = [*(("launch", "-n", str(count)) if count > 1 else ()), "run", str(tmp_path / "run.yaml")]
        done = subprocess.run(
            [sys.executable, "-m", "budwood", *words], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        store = Checkpoints(list_runs(tmp_path / str(count))[-1].checkpoints, 9)
        found.append([store.load(store.at(steps))[0]["trainer"]["parameters"]["policy"] for steps in (256, 512)])
    one, two = found
    assert max(float((one[0][name] - one[1][name]).abs().max()) for name in one[0]) > 1e-4, "it learns"
    assert max(float((one[0][name] - two[0][name]).abs().max()) for name in one[0]) < 1e-5

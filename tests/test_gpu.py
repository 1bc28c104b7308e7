"""On a GPU: `pytest tests/test_gpu.py -m gpu`. A run trains, checkpoints and resumes there; its state is the CPU's format."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import budwood
from budwood.checkpoint import Checkpoints
from budwood.folder import find_run

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

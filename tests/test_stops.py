"""A run that a plugin stops: it ends there after a crash too, goes on when a person resumes it, and leaves a trained policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import budwood
from budwood.checkpoint import Checkpoints
from budwood.folder import STATUS, RunFolder, find_run
from budwood.session import Session

pytest.importorskip("budwood_sb3")
pytest.importorskip("budwood_reward_shaping")


def solved_at_once(output: Path) -> dict[str, Any]:
    """Every episode meets its criterion, so the search ends after two outer steps of 256 steps each."""
    return {
        "seed": 1,
        "device": "cpu",
        "trainer": {
            "kind": "sb3",
            "algo": "ppo",
            "total_timesteps": 1024,
            "args": {"n_steps": 64, "batch_size": 64, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}},
        },
        "env": {"id": "budwood_reward_shaping.reach_budget:ReachBudget-v0", "n_envs": 4},
        "plugins": {
            "reward_shaping": {
                "terms": ["speed", "effort"],
                "criteria": [{"name": "always", "source": "step", "stat": "sum", "op": ">=", "threshold": 0.0}],
                "outer": {"inner_iterations": 1, "episodes": 1},
                "weights": {"scale": None},
            }
        },
        "evaluation": {"every": None, "episodes": 1},
        "tracking": {"enabled": False},
        "output": str(output),
    }


def steps_saved(run: RunFolder) -> int:
    found = Checkpoints(run.checkpoints, 1).latest()
    assert found is not None
    steps: int = Checkpoints(run.checkpoints, 1).load(found[0])[0]["session"]["steps"]
    return steps


def test_killed_before_it_could_say_so_it_ends_where_it_was_stopped(tmp_path: Path) -> None:
    result = budwood.run(solved_at_once(tmp_path))
    run = find_run(result.run_id, tmp_path)
    assert (result.status, run.status["steps"]) == ("stopped", 512)

    status = json.loads((run.folder / STATUS).read_text())
    del status["stopped_at"]
    (run.folder / STATUS).write_text(json.dumps({**status, "status": "running"}))
    assert run.status["status"] == "killed"
    again = budwood.resume(str(run.folder))
    assert (again.status, steps_saved(run)) == ("stopped", 512)


def test_interrupted_at_the_boundary_that_stops_it_it_still_ends_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Session.stop

    def both(session: Session, reason: str) -> None:
        plain(session, reason)
        session.interrupt()

    with monkeypatch.context() as patched:
        patched.setattr(Session, "stop", both)
        result = budwood.run(solved_at_once(tmp_path))
    run = find_run(result.run_id, tmp_path)
    assert (result.status, run.status["steps"]) == ("interrupted", 512)
    again = budwood.resume(str(run.folder))
    assert (again.status, steps_saved(run)) == ("stopped", 512)


def ended_by_budget(output: Path) -> dict[str, Any]:
    """A sweep that never succeeds by its one hard criterion, and does better or worse by the others; its budget ends it."""
    made = solved_at_once(output)
    marks = [-2.0, -0.5, 0.2, 1.0, 1_000.0]
    section = made["plugins"]["reward_shaping"]
    section["criteria"] = [{"name": str(x), "source": "x", "stat": "final", "op": ">=", "threshold": x} for x in marks]
    section |= {"baseline": "sweep", "outer": {"steps": 20, "inner_iterations": 1, "episodes": 1}}
    return {**made, "budget": 2_000, "trainer": {**made["trainer"], "total_timesteps": 4_096}}


def test_killed_after_its_last_checkpoint_it_leaves_the_same_policy(tmp_path: Path) -> None:
    result = budwood.run(ended_by_budget(tmp_path))
    run = find_run(result.run_id, tmp_path)
    steps, left = run.status["steps"], policy(run)
    status = json.loads((run.folder / STATUS).read_text())
    (run.folder / STATUS).write_text(json.dumps({**status, "status": "running"}))
    again = budwood.resume(str(run.folder))
    assert (again.status, run.status["steps"]) == (result.status, steps)
    assert all(torch.equal(left[name], value) for name, value in policy(run).items())
    assert again.metrics == result.metrics


def policy(run: RunFolder) -> dict[str, Any]:
    from stable_baselines3 import PPO

    parameters: dict[str, Any] = PPO.load(run.folder / "export" / "model.zip", device="cpu").policy.state_dict()
    return parameters


def test_resumed_by_a_person_it_goes_on_to_its_end(tmp_path: Path) -> None:
    run = find_run(budwood.run(solved_at_once(tmp_path)).run_id, tmp_path)
    again = budwood.resume(str(run.folder))
    assert (again.status, steps_saved(run)) == ("finished", 1024)

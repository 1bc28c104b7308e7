"""A task that cannot be done: the search goes on to its end and says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from budwood_reward_shaping import demo

pytest.importorskip("budwood_sb3")

CONTRADICTORY = [
    {"name": "far", "source": "x", "stat": "final", "op": ">=", "threshold": 4.0},
    {"name": "near", "source": "x", "stat": "final", "op": "<=", "threshold": 3.0},
]


def tiny(tmp_path: Path, **section):
    """ReachBudget with four environments and three outer steps of 400 environment steps."""
    made = demo.config("tiny", 0, str(tmp_path), 1_200)
    made["env"]["n_envs"] = 4
    made["trainer"]["args"] |= {"batch_size": 100, "n_epochs": 1}
    made["plugins"]["reward_shaping"] |= {"outer": {"steps": 3, "inner_iterations": 2, "episodes": 2}, **section}
    return made | {"evaluation": {"every": None, "episodes": 0}, "tracking": {"enabled": False}}


def test_contradictory_criteria_are_never_met_and_never_stop_the_search(tmp_path):
    """An episode meets one of the two at most; the task's reward never varies, so there is no gradient to follow."""
    from budwood import run

    result = run(tiny(tmp_path, criteria=CONTRADICTORY))
    assert result.status == "finished"
    last = {key.removeprefix("reward_shaping/"): value for key, value in result.metrics.items()}
    assert last["P"] == last["best_P"] == 0.0
    assert last["P_soft"] <= 0.5
    assert last["zero_grad"] == 2
    page = Path(result.paths["report"]).read_text()
    assert "P never reached 0.9" in page
    assert "No rollout had a hypergradient" in page

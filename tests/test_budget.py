"""A run with a budget of environment steps: where it ends, what it says, and that it goes on when the budget is raised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import budwood
from budwood.folder import find_run


def test_a_run_ends_with_its_budget_and_goes_on_with_more(small: Path, budwood: Callable[..., Any]) -> None:
    said = budwood("run", small, "budget=300", "evaluation.every=128", "--json")
    run = find_run(said.json["run_id"])
    assert said.json["status"] == "finished"
    assert (run.status["steps"], run.status["env_steps"]) == (256, 356), "two evaluations of 50 steps each"
    assert run.status["cpu_seconds"] > 0

    refused = budwood("resume", "last", "--json")
    assert refused.code == 2
    assert "budget=" in refused.json["error"]["do"]
    assert "total_timesteps" not in refused.json["error"]["do"]

    cpu = run.status["cpu_seconds"]
    more = budwood("resume", "last", "budget=10_000", "--json")
    assert (more.json["status"], run.status["steps"]) == ("finished", 512)
    assert run.status["cpu_seconds"] > cpu, "sittings add up"


def test_more_budget_is_the_run_that_always_had_it(small: Path, tmp_path: Path) -> None:
    pytest.importorskip("budwood_sb3")
    whole = budwood.run(small, output=str(tmp_path / "whole"), evaluation__every=128)
    cut = budwood.run(small, output=str(tmp_path / "cut"), evaluation__every=128, budget=300)
    resumed = budwood.resume(str(tmp_path / "cut" / cut.run_id), ["budget=null"])
    assert {key: value for key, value in whole.metrics.items() if not key.startswith("time/")} == {
        key: value for key, value in resumed.metrics.items() if not key.startswith("time/")
    }

"""``budwood.restored``: the policy of a run, for scripts and plugins to act with."""

from __future__ import annotations

from pathlib import Path

import pytest

import budwood
from budwood.api import CheckpointError


@pytest.fixture
def folder(toy: Path, tmp_path: Path) -> Path:
    trained = budwood.run(
        {
            "name": "walk",
            "output": str(tmp_path / "runs"),
            "trainer": {"kind": "toy", "total_timesteps": 100},
            "checkpoint": {"every": 50, "keep": 5},
            "tracking": {"enabled": False},
        }
    )
    return Path(trained.paths["folder"])


def test_the_newest_policy_and_its_configuration(folder: Path) -> None:
    with budwood.restored(str(folder)) as run:
        assert run.run_id == folder.name
        assert run.checkpoint.parent == folder / "checkpoints"
        assert run.config["trainer"]["total_timesteps"] == 100
        policy = run.trainer.policy_state()["policy"]
    assert policy == float((folder / "export" / "policy.txt").read_text())


def test_an_earlier_one_by_its_step(folder: Path) -> None:
    with budwood.restored(str(folder), 50) as run:
        assert run.checkpoint.name.startswith("step_000000000050")
        early = run.trainer.policy_state()["policy"]
    with budwood.restored(str(folder), 100) as run:
        assert run.trainer.policy_state()["policy"] > early
    with pytest.raises(CheckpointError, match="no checkpoint of step 7"), budwood.restored(str(folder), 7):
        pass

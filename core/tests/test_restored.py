"""``budwood.restored``: the policy of a run, for scripts and plugins to act with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import budwood
from budwood import runs
from budwood.api import CheckpointError
from budwood.checkpoint import Checkpoints
from budwood.folder import RunFolder, find_run


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


def test_how_many_processes_a_run_began_with_is_told_to_whoever_takes_it_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two wrote it, one goes on, and again: what the configuration says for each process, it says for two."""
    told = []
    plan = runs.plan
    monkeypatch.setattr(runs, "plan", lambda *args, **how: told.append(how["begun_with"]) or plan(*args, **how))
    store, run = Checkpoints(folder / "checkpoints", 9), RunFolder(folder)
    assert run.status["begun_with"] == 1
    state, meta = store.load(store.at(100))
    assert meta["begun_with"] == 1
    store.save(100, state, {**meta, "begun_with": 2})
    for steps in (150, 200):
        budwood.resume(str(folder), [f"trainer.total_timesteps={steps}"])
        assert store.load(store.at(steps))[1]["begun_with"] == 2
    with budwood.restored(str(folder)):
        pass
    assert told == [2, 2, 2]


def test_one_that_was_killed_before_its_first_checkpoint_knows_it_too(folder: Path) -> None:
    for path in (folder / "checkpoints").iterdir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    RunFolder(folder).write_status(status="killed", begun_with=2)
    budwood.resume(str(folder))
    store = Checkpoints(folder / "checkpoints", 9)
    assert store.load(store.at(100))[1]["begun_with"] == RunFolder(folder).status["begun_with"] == 2


def test_a_run_found_from_where_one_stands_keeps_its_artifacts_by_their_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent.parent)
    for reference in ("last", folder.name, f"runs/{folder.name}"):
        assert find_run(reference).folder == folder.resolve()
    before = (folder / "events.jsonl").read_text().count('"artifact"')
    budwood.resume("last", ["trainer.total_timesteps=150"])
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    paths = [line["data"]["path"] for line in lines if line["kind"] == "artifact"]
    assert len(paths) > before
    assert all((folder / path).exists() for path in paths[before:]), paths

"""Learning from a dataset in two processes, each with its part of every batch, takes the updates of one with all of it.

By hand, since every process imports LeRobot:  pytest adapters/lerobot/tests/test_processes_lerobot.py -m slow
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from robots import ARGS, NOD

from budwood.api import Processes
from budwood.checkpoint import Checkpoints
from budwood.folder import RunFolder, list_runs
from budwood_lerobot import state
from budwood_lerobot.blocks import Shares

STEPS = 7
"""Past the first epoch, whose last batch is a short one."""


class Part(Processes):
    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_parts_of_all_processes_are_the_batches_of_one(count: int) -> None:
    order = list(range(13))
    parts = [list(Shares(order, 5, Part(rank, count))) for rank in range(count)]
    assert all(len(part) == len(Shares(order, 5, Part(0, count))) == 3 for part in parts)
    first = [row for part in parts for row in part[0]]
    assert first == [0, 1, 2, 3, 4]
    assert sorted({row for part in parts for row in part[2]}) == [10, 11, 12]  # a part without rows reads one again


def test_another_number_of_processes_goes_on_and_says_what_differs() -> None:
    each = [{"generators": rank, "meters": {"loss": rank}} for rank in range(2)]
    saved = {**each[0], "each": each}
    assert state.own(saved, Part(1, 2)) == (each[1], [])
    assert state.own({"generators": 7, "meters": {}}, Part(0, 1))[0]["generators"] == 7
    alone, (note,) = state.own(saved, Part(0, 1))
    assert alone["generators"] == 0
    assert "trained in 2 processes: the rows go on as they were" in note
    assert "generators" not in state.own(saved, Part(2, 3))[0]


def started(folder: Path, dataset: Path, count: int) -> RunFolder:
    config = {
        "name": "nod",
        "seed": 3,
        "device": "cpu",
        "trainer": {"kind": "lerobot", "algo": "offline", "policy": NOD, "total_steps": STEPS, "args": dict(ARGS)},
        "dataset": {"repo_id": "local/middle", "root": str(dataset)},
        "evaluation": {"every": None, "episodes": 0},
        "checkpoint": {"every": 1, "keep": 10},
        "tracking": {"enabled": False},
        "output": str(folder / str(count)),
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    command(folder, *(("launch", "-n", str(count)) if count > 1 else ()), "run", "run.yaml")
    return list_runs(folder / str(count))[-1]


def command(folder: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "budwood", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def saved(run: RunFolder, step: int) -> dict[str, Any]:
    store = Checkpoints(run.checkpoints, 1)
    found: dict[str, Any] = store.load(store.at(step))[0]["trainer"]["policy"]
    return found


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert set(one) == set(other)
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@pytest.mark.slow
def test_two_with_a_part_of_every_batch_take_the_updates_of_one_and_one_goes_on(dataset: Path, tmp_path: Path) -> None:
    one, two = started(tmp_path, dataset, 1), started(tmp_path, dataset, 2)
    assert apart(saved(one, 1), saved(one, 2)) > 1e-5  # it learns
    assert apart(saved(one, 1), saved(two, 1)) < 1e-6
    assert apart(saved(one, STEPS), saved(two, STEPS)) < 1e-6

    copy = RunFolder(Path(shutil.copytree(two.folder, tmp_path / "again" / two.run_id)))
    for later in copy.checkpoints.glob("step_*"):
        if later.name > f"step_{3:012d}":
            shutil.rmtree(later)
    copy.write_status(status="killed")
    command(tmp_path, "resume", str(copy.folder))
    assert apart(saved(one, STEPS), saved(copy, STEPS)) < 1e-6

"""The picker in two processes, alone and beside reward_shaping: one run, whose stages and weights move in both alike.

By hand, since every process imports TRL:  pytest plugins/lcqa_selector/tests/test_selector_processes.py -m slow
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from budwood.checkpoint import Checkpoints
from budwood.folder import RunFolder, list_runs
from budwood_lcqa_selector.records import write_rows
from budwood_lcqa_selector.worlds import fact_chain

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("budwood_trl")
    folder = tmp_path_factory.mktemp("files")
    write_rows(folder / "train.jsonl", [fact_chain(seed, pool=4, filler=0) for seed in range(48)])
    write_rows(folder / "eval.jsonl", [fact_chain(seed, pool=4, filler=0) for seed in range(100, 104)])
    toy.save(folder / "model")
    return folder


def config(files: Path, output: Path) -> dict[str, Any]:
    return {
        "name": "picker",
        "device": "cpu",
        "output": str(output),
        "processes": 2,
        "trainer": {
            "kind": "trl",
            "algo": "grpo",
            "model": str(files / "model"),
            "total_steps": 8,
            "args": {
                "per_device_train_batch_size": 4,
                "per_device_eval_batch_size": 4,
                "num_generations": 4,
                "max_completion_length": 1,
                "learning_rate": 1e-3,
                "lr_scheduler_type": "constant",
                "logging_steps": 1,
            },
        },
        "plugins": {
            "lcqa_selector": {
                "rows": str(files / "train.jsonl"),
                "eval_rows": str(files / "eval.jsonl"),
                "stages": [
                    {"red": 4, "prompt": "wide", "name": "recall", "max_steps": 4},
                    {"red": 1, "prompt": "tight", "name": "precision"},
                ],
            }
        },
        "evaluation": {"every": 2},
        "checkpoint": {"every": 2, "keep": 10},
        "tracking": {"enabled": False},
    }


def searched(files: Path, output: Path) -> dict[str, Any]:
    made = config(files, output)
    made["trainer"]["rewards"] = {"think_format_reward": 1.0}
    made["evaluation"] = {"every": None, "episodes": 0}
    made["plugins"]["reward_shaping"] = {
        "terms": [
            {"name": "evidence", "info": "lcqa_selector.evidence"},
            {"name": "form", "info": "trl.think_format_reward"},
        ],
        "criteria": [
            {"name": "picks", "source": "lcqa_selector.evidence", "stat": "final", "op": ">=", "threshold": 0.5}
        ],
        "weights": {"scale": None, "w_task": 0.0},
        "outer": {"steps": 3, "inner_steps": 2, "estimator": "score", "samples": 2, "episodes": 4},
    }
    return made


def launched(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "budwood", "launch", "-n", "2", *words],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def logged(run: RunFolder) -> dict[tuple[int, str], float]:
    events = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    return {
        (event["step"], name): value
        for event in events
        if event["kind"] == "metrics"
        for name, value in event["data"].items()
        if "time" not in name and "per_second" not in name
    }


def apart(one: tuple[RunFolder, int], other: tuple[RunFolder, int]) -> float:
    """The largest difference of two policies."""
    first, second = (
        store.load(store.at(step))[0]["trainer"]["policy"]
        for store, step in ((Checkpoints(run.checkpoints, 1), step) for run, step in (one, other))
    )
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


@pytest.mark.parametrize("made", [config, searched], ids=["alone", "beside_reward_shaping"])
def test_two_processes_train_a_picker_and_go_on_bit_for_bit(made: Any, files: Path, tmp_path: Path) -> None:
    """Every checkpoint compares what the callbacks of both remember: the stage, the weights, the search."""
    (tmp_path / "run.yaml").write_text(json.dumps(made(files, tmp_path / "runs")))
    launched("run", str(tmp_path / "run.yaml"))
    (run,) = list_runs(tmp_path / "runs")
    numbers = logged(run)
    assert numbers[4, "lcqa_selector/switched"] == 4
    if made is searched:
        assert len({value for (_, name), value in numbers.items() if name == "reward_shaping/w/evidence"}) > 1

    copy = RunFolder(Path(shutil.copytree(run.folder, tmp_path / "again" / run.run_id)))
    for later in copy.checkpoints.glob("step_*"):
        if later.name > f"step_{6:012d}":
            shutil.rmtree(later)
    copy.write_status(status="killed")
    launched("resume", str(copy.folder))
    assert apart((run, 6), (run, 8)) > 0.0
    assert apart((run, 8), (copy, 8)) == 0.0

"""The same run in one process and in two, forked from the test: what both have come to, and one process going on alone.

``budwood launch`` starts processes as it starts any others, which tests/test_processes_sb3.py shows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from budwood import resume, run
from budwood.checkpoint import Checkpoints
from budwood.folder import RunFolder, list_runs
from budwood.forking import forked


def both(folder: Path, config: Callable[[Path], dict[str, Any]]) -> tuple[RunFolder, RunFolder]:
    """The run that ``config(output)`` says, in one process and in two."""
    run(config(folder / "one"))  # first, so that what it imports is there for the others
    forked(2, lambda: run(config(folder / "two"), processes=2).first)
    return list_runs(folder / "one")[0], list_runs(folder / "two")[0]


def weights(run: RunFolder, steps: int) -> dict[str, torch.Tensor]:
    store = Checkpoints(run.checkpoints, 1)
    trainer = store.load(store.at(steps))[0]["trainer"]
    return trainer.get("parameters", trainer)["policy"]  # those of Stable-Baselines3 are beside their optimisers


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def logged_alike(one: RunFolder, two: RunFolder, bound: float) -> set[str]:
    """The names of all that both log, in parts ``bound`` apart at most; ten times as far where it is the worst of rows."""
    whole, parts = _logged(one), _logged(two)
    assert whole.keys() == parts.keys()
    for (step, name), value in whole.items():
        rel = 10 * bound if name.endswith("_worst") else bound
        assert parts[step, name] == pytest.approx(value, rel=rel, abs=bound / 10, nan_ok=True), f"{name} at {step}"
    return {name for _, name in whole}


def _logged(run: RunFolder) -> dict[tuple[int, str], float]:
    """(step, name) -> value of everything that does not measure time."""
    numbers = {}
    for line in (run.folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "metrics":
            numbers |= {(event["step"], name): value for name, value in event["data"].items()}
    return {key: value for key, value in numbers.items() if not key[1].startswith(("time/", "flow_rl/cpu/"))}


def gone_on_alone(run: RunFolder, steps: int, to: Path) -> RunFolder:
    """A copy of ``run``, as if it had been killed after ``steps``, resumed in one process."""
    copy = RunFolder(Path(shutil.copytree(run.folder, to / run.run_id)))
    for later in list(copy.checkpoints.glob("step_*")):
        if later.name != f"step_{steps:012d}":
            shutil.rmtree(later)
    copy.write_status(status="killed")
    resume(str(copy.folder), ["processes=1"])
    return copy

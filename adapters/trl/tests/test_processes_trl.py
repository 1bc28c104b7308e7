"""GRPO and DPO in two processes, each with half of the rows, take the update of one with all; others go on from it.

By hand, since every process imports TRL:  pytest adapters/trl/tests/test_processes_trl.py -m slow
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import ARGS

from budwood.checkpoint import Checkpoints
from budwood.folder import RunFolder, list_runs

pytestmark = pytest.mark.slow

FIXED = '''
from budwood.api import CompletionReward, Generated, hookimpl

def answer(request):
    """The same completions whoever asks: they follow from the prompt, and from which of its generations it is."""
    seen, ids = {}, []
    for prompt in map(tuple, request.prompt_ids):
        number = seen[prompt] = seen.get(prompt, -1) + 1
        ids.append([3 + (sum(prompt) * (number + 2) + 11 * i) % 200 for i in range(4 + number)])
    return Generated(ids, None)

def score(batch):
    return [float(sum(ids) % 7) for ids in batch.ids]

class Plugin:
    @hookimpl
    def rollout(self, run): return answer
    @hookimpl
    def completion_rewards(self, run): return CompletionReward("sevenths", score)
'''


@pytest.fixture
def start(model_folder: Path, rows_file: Callable[..., Path], tmp_path: Path) -> Callable[..., RunFolder]:
    """``start(algo, count, rows, ...)``: a run in ``count`` processes with ``rows`` rows a step in each."""
    site = tmp_path / "site" / "budwood_fixed-1.0.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: budwood-fixed\nVersion: 1.0\nRequires-Dist: budwood>=0.1,<0.2\n"
    )
    (site / "entry_points.txt").write_text("[budwood.plugins]\nfixed = offered_fixed:Plugin\n")
    (site.parent / "offered_fixed.py").write_text(FIXED)

    def run(algo: str, count: int, rows: int, **args: Any) -> RunFolder:
        output = tmp_path / f"{algo}-{count}"
        config = {
            "name": algo,
            "seed": 3,
            "device": "cpu",
            "trainer": {
                "kind": "trl",
                "algo": algo,
                "model": str(model_folder),
                "total_steps": 4,
                "args": {**ARGS[algo], "per_device_train_batch_size": rows, **args},
            },
            "dataset": {"train": str(rows_file(algo))},
            "plugins": {"fixed": None} if algo == "grpo" else {},
            "evaluation": {"every": None, "episodes": 0},
            "checkpoint": {"every": 1, "keep": 10},
            "tracking": {"enabled": False},
            "output": str(output),
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
        command(tmp_path, *(("launch", "-n", str(count)) if count > 1 else ()), "run", "run.yaml")
        return list_runs(output)[-1]

    return run


def command(folder: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "budwood", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "site")},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def saved(run: RunFolder, step: int) -> dict[str, Any]:
    store = Checkpoints(run.checkpoints, 1)
    found: dict[str, Any] = store.load(store.at(step))[0]["trainer"]
    return found


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of two policies."""
    assert set(one["policy"]) == set(other["policy"])
    pairs = [(one["policy"][name], other["policy"][name]) for name in one["policy"]]
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


@pytest.mark.parametrize(("algo", "rows", "args"), [("grpo", 4, {"num_generations": 2}), ("dpo", 4, {})])
def test_two_with_half_of_the_rows_take_the_update_of_one_with_all(
    start: Callable[..., RunFolder], algo: str, rows: int, args: dict[str, Any]
) -> None:
    # Adam's first step is the learning rate for a gradient of 1e-9 too, whose rounding then shows in proportion to it.
    args = {**args, "learning_rate": 1e-3}
    one, two = start(algo, 1, rows, **args), start(algo, 2, rows // 2, **args)
    assert apart(saved(one, 1), saved(one, 2)) > 1e-4  # it learns
    assert apart(saved(one, 1), saved(two, 1)) < 1e-6
    assert apart(saved(one, 4), saved(two, 4)) < 1e-4


def cut(run: RunFolder, step: int, where: Path) -> RunFolder:
    """A copy of a run as it was when it was killed after the checkpoint of ``step``."""
    copy = RunFolder(Path(shutil.copytree(run.folder, where / run.run_id)))
    for later in copy.checkpoints.glob("step_*"):
        if later.name > f"step_{step:012d}":
            shutil.rmtree(later)
    copy.write_status(status="killed")
    return copy


def test_two_go_on_from_what_two_wrote_bit_for_bit(start: Callable[..., RunFolder], tmp_path: Path) -> None:
    run = start("grpo", 2, 2, num_generations=2, steps_per_generation=2)
    copy = cut(run, 1, tmp_path / "again")
    command(tmp_path, "launch", "-n", "2", "resume", str(copy.folder))
    assert apart(saved(run, 4), saved(copy, 4)) == 0.0


IN_HAND = {"num_generations": 2, "num_iterations": 2, "steps_per_generation": 2}
"""All four steps use what is generated before the first."""


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(
    ("algo", "args"),
    [("grpo", {"num_generations": 2}), ("grpo", IN_HAND), ("dpo", {"gradient_accumulation_steps": 2})],
    ids=["grpo", "grpo in hand", "dpo"],
)
def test_others_go_on_from_what_two_wrote(
    algo: str, args: dict[str, Any], count: int, start: Callable[..., RunFolder], tmp_path: Path
) -> None:
    run = start(algo, 2, 4, **args, learning_rate=1e-3)
    copy = cut(run, 1, tmp_path / "again")
    command(tmp_path, *(("launch", "-n", str(count)) if count > 1 else ()), "resume", str(copy.folder))
    assert apart(saved(run, 1), saved(run, 2)) > 1e-4
    assert apart(saved(run, 2), saved(copy, 2)) < 1e-6
    assert apart(saved(run, 4), saved(copy, 4)) < 1e-4


def test_a_run_goes_from_two_to_four_to_one_and_is_evaluated_and_exported(
    start: Callable[..., RunFolder], tmp_path: Path
) -> None:
    """A group of four is larger than a process's rows: only those of both together make a step that TRL takes."""
    args = {"num_generations": 4, "num_iterations": 4, "steps_per_generation": 1, "learning_rate": 1e-3}
    run = start("grpo", 2, 2, **args)
    copy = cut(run, 1, tmp_path / "again")
    command(tmp_path, "launch", "-n", "4", "resume", str(copy.folder))
    assert apart(saved(run, 4), saved(copy, 4)) < 1e-4
    last = cut(copy, 2, tmp_path / "once more")
    command(tmp_path, "resume", str(last.folder))
    assert apart(saved(run, 4), saved(last, 4)) < 1e-4
    command(tmp_path, "export", str(last.folder))
    command(tmp_path, "eval", str(last.folder), "--episodes", "2")

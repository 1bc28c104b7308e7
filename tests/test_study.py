"""A study of real trainers: killed in the middle and run again, it is the study that was never killed, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

import budwood
from budwood import journal
from budwood.checkpoint import Checkpoints
from budwood.folder import RunFolder, find_run, list_runs
from budwood.yaml_io import dump

STUDY: dict[str, Any] = {
    "base": "small.yaml",
    "seeds": 2,
    "budget": 400,
    "processes": 2,
    "variants": {"slow": {"trainer.args.learning_rate": 1e-5}, "fast": {"trainer.args.learning_rate": 1e-2}},
    "metrics": {
        "return": {"metric": "eval/return_mean", "of": "eval/env_steps"},
        "entropy": {"metric": "train/entropy_loss", "take": "mean"},
    },
}


def study(file: Path, output: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "budwood", "study", str(file), f"output={output}", "--json"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def trained(run: RunFolder) -> tuple[dict[str, bytes], list[tuple[int, str]]]:
    """Every tensor of the last checkpoint and everything logged, but for what a clock says."""
    newest = Checkpoints(run.checkpoints, 1).latest()
    assert newest is not None
    metrics = [
        (event.step, repr({key: value for key, value in event.data.items() if not key.startswith("time/")}))
        for event in journal.read(run.folder)
        if event.kind == "metrics"
    ]
    tensors = load_file(newest[0] / "tensors.safetensors")
    return {name: value.tobytes() for name, value in tensors.items() if not name.endswith("episode_times")}, metrics


def sittings(run: RunFolder) -> int:
    return sum(event.kind == "run" for _, event in journal.scan(run.folder / journal.FILE))


def test_killed_in_the_middle_it_is_the_study_that_was_never_killed(small: Path, tmp_path: Path) -> None:
    file = small.with_name("rates.yaml")
    file.write_text(dump(STUDY))
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    first = study(file, killed)
    assert first.stderr is not None
    assert any(" finished: return" in line for line in first.stderr)
    first.kill()
    first.communicate()
    finished = {run.run_id for run in list_runs(killed) if run.status["status"] == "finished"}
    assert 1 <= len(finished) < 4

    second = study(file, killed)
    out, err = second.communicate(timeout=600)
    assert second.returncode == 0, err
    answer = json.loads(out)
    assert answer["status"] == "finished"
    assert [row["n"] for row in answer["summary"]] == [2, 2, 2, 2]
    for row in answer["cells"]:
        run = find_run(row["run"], killed)
        settings = STUDY["variants"][row["variant"]]
        uninterrupted = budwood.run(small, [f"{key}={value}" for key, value in settings.items()], seed=row["seed"],
                                    budget=STUDY["budget"], output=str(whole))  # fmt: skip
        assert trained(run) == trained(find_run(uninterrupted.run_id, whole)), row["run"]
        assert row["return"] == uninterrupted.metrics["eval/return_mean"]
        if row["run"] in finished:
            assert sittings(run) == 1, "a finished run is never run again"

"""Policies and environments of a package that only registers them with LeRobot, and LeRobot's own commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from robots import ARGS, NOD, POLICIES, parameters, same
from safetensors.torch import load_file
from test_parity_lerobot import trained

from budwood_lerobot.config import PolicyConfig

HERE = Path(__file__).parent
NODDING = {"type": "nodding", "discover_packages_path": "nodding"}


def rightward(seeds: range) -> float:
    """The share of episodes with these seeds that begin to the right of the middle."""
    return float(np.mean([np.random.default_rng(seed).uniform(0, 1, 2)[0] > 0.5 for seed in seeds]))


def test_a_registered_policy_trains_and_a_registered_environment_counts_its_successes(trainer: Any) -> None:
    made = trainer(NOD, env={**NODDING, "n_envs": 2, "tasks": 2}, steps=20)
    losses = [row["train/loss"] for _, row in trained(made).records]
    assert losses[-1] < losses[0]
    evaluation = made.evaluate(5, 40)
    assert evaluation.returns.tolist() == [3.0] * 10, "five of each task"
    assert 0 < rightward(range(40, 45)) < 1
    assert evaluation.metrics["success_rate"] == pytest.approx(rightward(range(40, 45)))
    assert evaluation.metrics["success_rate/nodding/1"] == pytest.approx(rightward(range(40, 45)))


def test_a_package_that_is_not_there() -> None:
    with pytest.raises(ValidationError, match="discover_packages_path: Failed to load plugin 'noding'"):
        PolicyConfig.model_validate({"type": "nod", "discover_packages_path": "noding"})


def test_beside_a_path_lerobot_wants_the_package_named_under_env(
    trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes every ``--policy.*`` beside ``--policy.path`` for a field of the saved configuration."""
    from lerobot.configs.eval import EvalPipelineConfig
    from nodding.envs import NodEnv

    path = trainer(NOD).export(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", f"--policy.path={path}", "--env.discover_packages_path=nodding"])
    assert EvalPipelineConfig(env=NodEnv()).policy is not None
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--policy.discover_packages_path=nodding"])
    with pytest.raises(SystemExit):
        EvalPipelineConfig(env=NodEnv())
    assert "unrecognized arguments: --discover_packages_path=nodding" in capsys.readouterr().err


def command(name: str, *given: str) -> str:
    """One of LeRobot's own commands, in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(HERE), "HF_HUB_OFFLINE": "1"}
    script = Path(sys.executable).parent / name
    done = subprocess.run([script, *given], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def trained_by_command(policy: list[str], dataset: Path, steps: int, out: Path) -> Path:
    command(
        "lerobot-train", *policy, "--policy.device=cpu", "--policy.push_to_hub=false", "--dataset.repo_id=local/middle",
        f"--dataset.root={dataset}", f"--steps={steps}", f"--batch_size={ARGS['batch_size']}", "--num_workers=0",
        "--env_eval_freq=0", "--wandb.enable=false", "--seed=3", f"--output_dir={out}",
    )  # fmt: skip
    return out / "checkpoints" / f"{steps:06d}" / "pretrained_model"


@pytest.mark.slow
def test_lerobots_own_commands_train_the_same_and_play_the_same(trainer: Any, dataset: Path, tmp_path: Path) -> None:
    """Two minutes: four processes that import LeRobot."""
    settings = {key: value for key, value in POLICIES["act"].items() if key != "type"}
    named = ["--policy.type=act", *(f"--policy.{key}={json.dumps(value)}" for key, value in settings.items())]
    theirs = trained_by_command(named, dataset, 6, tmp_path / "theirs")
    made = trainer("act", steps=6, env={"type": "pusht", "episode_length": 5})
    trained(made)
    path = made.export(tmp_path / "ours")
    ours = load_file(path / "model.safetensors")
    assert same(ours, load_file(theirs / "model.safetensors"))

    command(
        "lerobot-eval", f"--policy.path={path}", "--policy.device=cpu", "--env.type=pusht", "--env.episode_length=5",
        "--eval.n_episodes=2", "--eval.batch_size=1", "--seed=11", f"--output_dir={tmp_path / 'eval'}",
    )  # fmt: skip
    info = json.loads((tmp_path / "eval" / "eval_info.json").read_text())
    played = [task["metrics"]["sum_rewards"] for task in info["per_task"]]
    assert played == [pytest.approx(made.evaluate(2, 11).returns.tolist())]


@pytest.mark.slow
def test_lerobots_own_commands_know_a_package_by_its_path(trainer: Any, dataset: Path, tmp_path: Path) -> None:
    discovered = ["--policy.discover_packages_path=nodding", "--policy.type=nod"]
    theirs = trained_by_command(discovered, dataset, 4, tmp_path / "theirs")
    made = trainer(NOD, steps=4, env=NODDING)
    trained(made)
    assert same(parameters(made.native), load_file(theirs / "model.safetensors"))
    path = made.export(tmp_path / "ours")
    command(
        "lerobot-eval", f"--policy.path={path}", "--policy.device=cpu", "--env.type=nodding",
        "--env.discover_packages_path=nodding", "--eval.n_episodes=4", "--eval.batch_size=2", "--seed=40",
        f"--output_dir={tmp_path / 'eval'}",
    )  # fmt: skip
    overall = json.loads((tmp_path / "eval" / "eval_info.json").read_text())["overall"]
    assert overall["pc_success"] == pytest.approx(100 * rightward(range(40, 44)))
    assert torch.isfinite(torch.tensor(overall["avg_sum_reward"]))

"""The configurations of the discs run as they are shipped: cloning, both kernels from what it left, and the study over them."""

from pathlib import Path

import pytest
import yaml

pytest.importorskip("lerobot")

import budwood
from budwood.study_config import load
from budwood_lerobot import tiny
from budwood_lerobot.discs.__main__ import record

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs" / "flow_rl"
STUDY = load(ROOT / "configs" / "studies" / "flow_vla_discs.yaml")


def shipped(name: str, output: Path, **changes):
    made = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    for section, values in changes.items():
        made[section] |= values
    return {**made, "output": str(output), "device": "cpu", "tracking": {"enabled": False}}


def cloned(folder: Path, episodes: int, steps: int, evaluation: dict) -> budwood.Result:
    """What configs/flow_rl/discs_bc.yaml makes of a policy with random weights."""
    record(folder / "data", episodes)
    assert tiny.write(folder / "policy", "discs") < 300_000
    made = shipped("discs_bc", folder / "bc", evaluation=evaluation, dataset={"root": str(folder / "data")})
    made["trainer"]["policy"]["path"] = str(folder / "policy")
    made["trainer"]["total_steps"] = steps
    return budwood.run(made)


def tuned(clone: budwood.Result, output: Path, variant: str, **changes) -> budwood.Result:
    """A variant of the study from what was cloned."""
    made = shipped("discs", output, **changes)
    for key, value in (STUDY.config.variants[variant] or {}).items():
        *sections, last = key.split(".")
        place = made
        for section in sections:
            place = place[section]
        place[last] = value
    made["trainer"]["policy"]["path"] = clone.paths["native"]
    return budwood.run(made)


def test_every_step_of_the_recipe_runs(tmp_path):
    clone = cloned(tmp_path, episodes=6, steps=2, evaluation={"every": 2, "episodes": 2})
    assert "eval/success_rate" in clone.metrics
    small = {"total_steps": 12, "rollout": 2, "minibatch": 4, "epochs": 1, "critic_warmup": 1}
    for variant in ("flow-sde", "flow-noise"):
        run = tuned(
            clone,
            tmp_path / variant,
            variant,
            trainer=small,
            env={"n_envs": 2},
            evaluation={"every": 12, "episodes": 2},
        )
        assert run.status == "finished"
        assert run.metrics["flow_vla/first_ratio_worst"] <= 1e-4
        assert {"eval/success_rate", "time/update_cpu"} <= run.metrics.keys()


def test_the_first_variant_moves_the_critic_alone():
    base = yaml.safe_load((CONFIGS / "discs.yaml").read_text())
    first = STUDY.config.variants["bc"]
    assert first["trainer.total_steps"] == base["trainer"]["rollout"] * base["env"]["n_envs"]
    assert first["trainer.critic_warmup"] == 1

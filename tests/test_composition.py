"""Two plugins in one run: the page of what runs together, and the pairs that do, trained, stopped and resumed."""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import PPO

from budwood import resume, run
from budwood.api import BindingError
from budwood.planning import explain
from budwood.plugins import installed

sys.path.insert(0, str(Path(__file__).parent))
from composition import ADAPTERS, PAGE, SECTIONS, TRAINERS, answers, page

PAIRS_TRAINED = {("SB3 PPO", ("flow_rl", "reward_shaping")), ("TRL GRPO", ("lcqa_selector", "reward_shaping"))}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[tuple[str, tuple[str, ...]], str]]:
    pytest.importorskip("lerobot")
    pytest.importorskip("trl")
    from budwood_lerobot.tiny import write

    folder = tmp_path_factory.mktemp("policy")
    write(folder)
    return str(folder), answers(str(folder))


def test_every_plugin_and_every_pair_is_on_the_page(found: Any) -> None:
    assert {item.name for item in installed()} == ADAPTERS | set(SECTIONS), "a new plugin needs a section here"
    folder, given = found
    assert page(given).replace(folder, "POLICY") == PAGE.read_text(), "python tests/composition.py writes it anew"


def test_every_pair_that_is_said_to_run_together_is_trained_here(found: Any) -> None:
    _, given = found
    pairs = {(trainer, pair) for trainer in TRAINERS for pair in combinations(SECTIONS, 2) if not given[trainer, pair]}
    assert pairs == PAIRS_TRAINED
    for trainer, pair in pairs:
        assert not any(given[trainer, (name,)] for name in pair)


def logged(result: Any) -> dict[tuple[int, str], float]:
    """(step, name) -> value of everything that does not measure time."""
    numbers = {}
    for line in Path(result.paths["events"]).read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "metrics":
            numbers |= {(event["step"], name): value for name, value in event["data"].items()}
    clocks = ("time", "second", "cpu", "per_second", "memory", "fps")
    return {key: value for key, value in numbers.items() if not any(word in key[1] for word in clocks)}


def series(result: Any, name: str) -> list[float]:
    return [value for (_, key), value in sorted(logged(result).items()) if key == name]


# ---- weights of rewards are searched while a flow policy is fine-tuned --------------------------------------------------


def shaped_flow(output: Path, total: int) -> dict[str, Any]:
    return {
        "name": "both",
        "trainer": {
            "kind": "sb3",
            "algo": "ppo",
            "total_timesteps": total,
            "args": {"n_steps": 50, "batch_size": 50, "n_epochs": 2},
        },
        "env": {"id": "budwood_reward_shaping.reach_budget:ReachBudget", "n_envs": 4},
        "plugins": {
            "reward_shaping": {
                "terms": ["speed", "effort"],
                "criteria": ["distance"],
                "outer": {"steps": 3, "inner_iterations": 2, "rollouts": 1, "episodes": 2},
                "weights": {"w_task": 1.0, "scale": None},
                "task_mode": "fraction",
            },
            "flow_rl": {"family": {"hidden": [16, 16, 16]}, "chunk": {"horizon": 2, "execute": 2}},
        },
        "output": str(output),
        "device": "cpu",
        "tracking": {"enabled": False},
        "checkpoint": {"every": 200},
        "evaluation": {"every": None, "episodes": 0},
    }


def test_explain_shows_both_plugins_around_one_trainer(tmp_path: Path) -> None:
    bound = {(item.plugin, item.kind) for item in explain(shaped_flow(tmp_path, 1_200)).bindings}
    assert {("flow_rl", kind) for kind in ("build_env", "build_policy", "objective", "callbacks")} <= bound
    assert {("reward_shaping", kind) for kind in ("reward_terms", "reward_combination", "callbacks")} <= bound


def test_weights_are_searched_while_a_flow_is_tuned_and_both_resume(tmp_path: Path) -> None:
    whole = run(shaped_flow(tmp_path / "whole", 1_200))
    weights = series(whole, "reward_shaping/w/speed")
    assert len(set(weights)) > 1, "the search moved them"
    assert len(series(whole, "flow_rl/joint_kl")) == 6
    first = run(shaped_flow(tmp_path / "parts", 600))
    second = resume(first.paths["folder"], ["trainer.total_timesteps=1_200"])
    assert logged(second) == logged(whole)
    kept, straight = (PPO.load(made.paths["native"], device="cpu").policy.state_dict() for made in (second, whole))
    assert kept.keys() == straight.keys()
    assert all(bool((kept[name] == straight[name]).all()) for name in kept)


def test_a_flow_policy_of_lerobot_is_refused_on_other_trainers(tmp_path: Path) -> None:
    made = shaped_flow(tmp_path, 400)
    made["plugins"] = {"flow_vla": {}}
    with pytest.raises(BindingError) as raised:
        explain(made)
    text = str(raised.value)
    assert text.startswith("trainer.kind: flow_vla trains the flow policies of LeRobot, and trainer.kind is sb3")
    assert "budwood-flow-rl" in text
    assert len(text.splitlines()) == 1

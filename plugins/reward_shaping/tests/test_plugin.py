"""The whole plugin on a real trainer: searching, stopping, resuming, refusing, and what it leaves in the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from budwood.api import BindingError, ContributionError, PluginError
from budwood.testing import check_plugin
from budwood_reward_shaping import demo
from budwood_reward_shaping.config import ShapingConfig
from budwood_reward_shaping.report import sections

pytest.importorskip("budwood_sb3")


def config(tmp_path: Path, total: int = 2_400, **section):
    """ReachBudget with outer steps of 400 environment steps."""
    made = demo.config("tiny", 0, str(tmp_path), total)
    made["env"] = {"id": "budwood_reward_shaping.reach_budget:ReachBudget", "n_envs": 4}
    made["trainer"]["args"] |= {"batch_size": 100, "n_epochs": 2}
    made["plugins"]["reward_shaping"] |= {"outer": {"steps": 5, "inner_iterations": 2, "episodes": 2}, **section}
    return {
        **made,
        "checkpoint": {"every": None},
        "tracking": {"enabled": False},
        "evaluation": {"every": None, "episodes": 0},
    }


def events(result) -> list[dict]:
    return [json.loads(line) for line in Path(result.paths["events"]).read_text().splitlines()]


def logged(result) -> dict[tuple[int, str], float]:
    """(step, name) -> value of everything that does not measure time."""
    numbers = {}
    for event in events(result):
        if event["kind"] == "metrics":
            numbers |= {(event["step"], k): v for k, v in event["data"].items() if not k.startswith("time/")}
    return numbers


def parameters(result):
    from stable_baselines3 import PPO

    return PPO.load(result.paths["native"], device="cpu").policy.state_dict()


def test_contract():
    section = {"terms": [{"name": "speed", "info": "speed"}, "native"], "outer": None}
    assert [finding for finding in check_plugin("reward_shaping", section) if finding.level != "ok"] == []


def test_importing_the_plugin_is_light():
    heavy = ("torch", "gymnasium", "stable_baselines3", "mlflow", "matplotlib")
    code = f"import sys, budwood_reward_shaping.plugin, budwood_reward_shaping.demo; print(set({heavy}) & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "set()"


def test_search_resumed_in_the_middle_of_an_outer_step_is_the_uninterrupted_one(tmp_path):
    from budwood import resume, run

    whole = run(config(tmp_path / "whole"))
    first = run(config(tmp_path / "parts", total=1_000))
    second = resume(first.paths["folder"], ["trainer.total_timesteps=2_400"])
    straight, resumed = logged(whole), logged(second)
    assert {key for key in straight if key[1] == "reward_shaping/P"}
    assert resumed == straight
    for name, tensor in parameters(whole).items():
        assert tensor.equal(parameters(second)[name]), name


def test_auto_scale_with_the_task_in_the_reward_resumes_too(tmp_path):
    from budwood import resume, run

    weights = {"weights": {"w_task": 1.0}, "task_mode": "fraction", "explore": {"novelty": "rnd"}}
    whole = run(config(tmp_path / "whole", **weights))
    first = run(config(tmp_path / "parts", total=200, **weights))
    second = resume(first.paths["folder"], ["trainer.total_timesteps=2_400"])
    for name, tensor in parameters(whole).items():
        assert tensor.equal(parameters(second)[name]), name
    assert logged(whole)[0, "reward_shaping/scale/speed"] > 0


def test_report_shows_weights_and_decisions(tmp_path):
    from budwood import run

    result = run(config(tmp_path))
    page = Path(result.paths["report"]).read_text()
    for text in ("Reward shaping", "Task performance", "Weights tried", "No rollout had a hypergradient", "outer step"):
        assert text in page
    history: dict[str, tuple[list[int], list[float]]] = {}
    for (step, name), value in sorted(logged(result).items()):
        history.setdefault(name, ([], []))[0].append(step)
        history[name][1].append(value)
    made = ShapingConfig.model_validate(config(tmp_path)["plugins"]["reward_shaping"])
    (section,) = sections(made, history)
    assert len(section.table) == 5
    assert section.table[0]["speed"] == "1"
    assert "Policies were trained and evaluated 5 times" in section.text[0]
    assert sections(made, {}) == []


@pytest.mark.parametrize("baseline", ["uniform", "constant_reset", "gradient", "random"])
def test_baselines_run(tmp_path, baseline):
    from budwood import run

    metrics = logged(run(config(tmp_path, total=1_600, baseline=baseline)))
    weights = {value for (_, name), value in metrics.items() if name == "reward_shaping/w/speed"}
    assert (len(weights) > 1) == (baseline == "random")


def test_fixed_weights_with_an_off_policy_trainer(tmp_path):
    from budwood import run

    made = config(tmp_path, total=300, outer=None)
    made["trainer"] = {"kind": "sb3", "algo": "sac", "total_timesteps": 300, "args": {"learning_starts": 100}}
    made["evaluation"] = {"every": None, "episodes": 2}
    result = run(made)
    assert result.status == "finished"
    assert 0.0 <= result.metrics["reward_shaping/P"] <= 1.0


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "estimator one_step follows the rollouts of an on-policy trainer, and this one shows none"),
        (
            {"baseline": "random"},
            "an inner loop is counted in the rollouts of an on-policy trainer unless inner_steps says otherwise",
        ),
        (
            {"baseline": "random", "weights": {"param": "state", "scale": None}, "terms": ["speed", "effort"]},
            "param: state takes its normaliser from the first rollout",
        ),
        ({"outer": None, "weights": {"scale": "auto"}}, "scale: auto is measured on the first rollout"),
    ],
)
def test_search_with_an_off_policy_trainer_is_refused_before_anything_is_trained(tmp_path, section, message):
    from budwood import run
    from budwood.runs import explain

    made = config(tmp_path, total=300, **section)
    made["trainer"] = {"kind": "sb3", "algo": "sac", "total_timesteps": 300, "args": {"learning_starts": 100}}
    for ask in (explain, run):
        with pytest.raises(BindingError, match=message) as error:
            ask(made)
        assert error.value.who.startswith("budwood-reward-shaping ")
    assert not list(tmp_path.glob("*/status.json")), "nothing was begun"


@pytest.mark.parametrize(
    ("term", "kind", "message"),
    [
        (
            {"name": "drift", "info": "y"},
            ContributionError,
            "drift reads the info key 'y', which environment 0 does not give",
        ),
        ({"name": "cost", "info": "effort", "factor": -1.0, "sign": "-"}, PluginError, "declared non-positive and was"),
    ],
)
def test_terms_that_misbehave(tmp_path, term, kind, message):
    from budwood import run

    made = config(tmp_path, terms=["speed", term])
    with pytest.raises(kind, match=message):
        run(made)


def test_one_term_one_environment(tmp_path):
    """The only term is weighed against the task's own reward."""
    from budwood import run

    made = config(tmp_path, total=400, terms=["speed"], weights={"w_task": 1.0, "scale": None})
    made["env"]["n_envs"] = 1
    made["trainer"]["args"] |= {"batch_size": 50}
    assert logged(run(made))[100, "reward_shaping/w/speed"] == 1.0


def test_configurations_are_those_of_the_demo(configs):
    for file, name, changes in (
        ("reach_budget", "reach-budget", demo.SEARCH),
        ("reach_budget_equal", "reach-budget-equal", demo.EQUAL),
    ):
        assert yaml.safe_load((configs / f"{file}.yaml").read_text()) == demo.config(
            name, 0, None, demo.BUDGET, **changes
        )


def test_demo_picture(tmp_path):
    trace = demo.Trace([10, 20], [12.0, 24.0], [0.0, 1.0], [1.0, 0.5], [1.0, 2.0])
    np.testing.assert_allclose(trace.ratios, [1.0, 0.25])
    assert demo.draw(trace, trace, tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_demo(tmp_path):
    """The search does the task and equal weights do not, on as many steps."""
    answer = demo.command.main(["--output", str(tmp_path)], standalone_mode=False)
    assert answer["search"]["P"] == 1.0
    assert answer["equal"]["P"] == 0.0
    assert answer["search"]["env_steps"] == answer["equal"]["env_steps"]

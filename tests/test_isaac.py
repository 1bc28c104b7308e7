"""Environments of Isaac Lab in a whole run, under reward terms, with the stand-in of the adapter's own tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import budwood
from budwood.api import BudwoodError, ConfigError
from budwood.planning import explain
from budwood_isaac import process, tasks

STAND_IN = Path(__file__).parents[1] / "adapters" / "isaac" / "tests"
USED = {"alive": 1.0, "fallen": 2.0, "speed": 0.005, "place": 0.3}
"""The stand-in's terms under the absolute weights of their author, without the one left at 0."""


def run(**changes: Any) -> dict[str, Any]:
    return {
        "name": "stand-in",
        "trainer": {"kind": "sb3", "algo": "ppo", "total_timesteps": 384, "args": {"n_steps": 32, "batch_size": 32}},
        "env": {"id": "carts:Stand-In", "n_envs": 4, "vec": "isaac"},
        "device": "cpu",
        "plugins": {"isaac": {}},
        "evaluation": {"every": None, "episodes": 3},
        "tracking": {"enabled": False},
        **changes,
    }


def shaped(*terms: Any, **section: Any) -> dict[str, Any]:
    weights = {"w_task": 0.0, "scale": None, "bounds": [0.001, 10.0], "initial": USED}
    shaping = {"terms": list(terms), "weights": weights, "outer": None, **section}
    return run(plugins={"reward_shaping": shaping, "isaac": {}})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tasks.Task]:
    """Isaac Lab as if installed, and every simulation that was started."""
    monkeypatch.syspath_prepend(str(STAND_IN))
    from stand_in import AUTHOR, StandIn

    from budwood_isaac.simulation import Simulation

    started: list[tasks.Task] = []

    def remote(launch: Callable[..., None]) -> Simulation:
        task: tasks.Task = launch.__self__  # type: ignore[attr-defined]
        started.append(task)
        return Simulation(StandIn(task.n_envs, task.seed, managed="direct" not in task.id))

    def load(name: str, physics: str | None) -> Any:
        rewards = SimpleNamespace(**{key: SimpleNamespace(weight=weight) for key, weight in AUTHOR.items()})
        return SimpleNamespace(length=5.0) if "direct" in name else SimpleNamespace(length=5.0, rewards=rewards)

    monkeypatch.setattr(tasks, "missing", lambda: None)
    monkeypatch.setattr(tasks, "load", load)
    monkeypatch.setattr(process, "Remote", remote)
    return started


def test_under_the_authors_weights_the_shaped_reward_is_the_authors(made: list[tasks.Task], tmp_path: Path) -> None:
    result = budwood.run({**shaped(*USED), "output": str(tmp_path)})
    metrics = result.metrics
    terms = {name: metrics[f"terms/reward_shaping.{name}"] for name in USED}
    assert sum(USED[name] * value for name, value in terms.items()) == pytest.approx(
        metrics["terms/env.reward"], rel=1e-6
    )
    assert metrics["rollout/shaped_return"] == pytest.approx(metrics["rollout/ep_rew_mean"], abs=1e-5)
    assert terms["alive"] > 0 > terms["fallen"]
    assert [(task.n_envs, task.seed, task.device) for task in made] == [(4, 0, "cpu"), (3, 0, "cpu")]
    assert result.status == "finished"


def test_evaluations_have_no_window(made: list[tasks.Task], tmp_path: Path) -> None:
    config = run(plugins={"isaac": {"visualizer": "newton_gl", "physics": "newton_mjwarp", "device": "cuda:1"}})
    budwood.run({**config, "output": str(tmp_path)})
    assert [(task.visualizer, task.physics, task.device) for task in made] == [
        ("newton_gl", "newton_mjwarp", "cuda:1"),
        (None, "newton_mjwarp", "cuda:1"),
    ]


def test_resuming_restarts_episodes_and_says_so(made: list[tasks.Task], tmp_path: Path) -> None:
    first = budwood.run({**run(), "output": str(tmp_path)})
    again = budwood.resume(first.paths["folder"], ["trainer.total_timesteps=512"])
    assert again.status == "finished"
    assert any("IsaacVecEnv gives no state_dict" in note for note in again.notes)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            shaped("alive", "sped", weights={"scale": None}),
            "plugins.reward_shaping.terms: no term 'sped' is known for Stand-In; known are alive, fallen, metric, native, "
            "place, speed. Asked for by budwood-reward-shaping 0.1.0. Did you mean 'speed'?",
        ),
        (
            run(plugins={}),
            "env.vec: no vector of environments is called 'isaac'; this run knows dummy, subproc, envpool.",
        ),
        (
            run(env={"id": "Stand-In", "vec": "isaak"}),
            "'isaak'; this run knows dummy, subproc, envpool, isaac. Asked for by budwood-sb3 0.1.0. Did you mean 'isaac'?",
        ),
    ],
)
def test_mistakes_are_told_before_anything_starts(made: list[tasks.Task], config: Any, message: str) -> None:
    with pytest.raises(BudwoodError) as raised:
        explain(config)
    assert message in str(raised.value)
    assert made == []


def test_a_direct_task_with_manager_terms_says_to_declare_functions(made: list[tasks.Task], tmp_path: Path) -> None:
    config = shaped({"name": "alive", "info": "reward/alive"}, weights={"scale": None})
    config["env"]["id"] = "carts:Stand-In-direct"
    with pytest.raises(BudwoodError) as raised:
        budwood.run({**config, "output": str(tmp_path)})
    assert str(raised.value) == (
        "plugins.reward_shaping: reward term reward_shaping.alive cannot be computed: the task carts:Stand-In-direct has no "
        "reward manager (direct workflow) and computes its reward in one piece, so there is no 'reward/alive' to read. Asked "
        "for by budwood-reward-shaping 0.1.0. Declare terms as functions of observations and actions, in a pack of a plugin "
        "of yours."
    )


def test_without_isaac_lab_a_run_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = ConfigError("Isaac Lab is not installed", where="env.vec", do=tasks.INSTALL)
    monkeypatch.setattr(tasks, "missing", lambda: error)
    explain(run())
    with pytest.raises(ConfigError, match=r"^env.vec: Isaac Lab is not installed. .*adapters/isaac/constraints.txt"):
        budwood.run({**run(), "output": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []

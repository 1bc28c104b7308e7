"""Configurations of tasks: what a run may change, what follows from it, and what is said where Isaac Lab is missing."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest

from budwood.api import ConfigError
from budwood_isaac import tasks


def task() -> Any:
    """As Isaac Lab's configurations nest: objects in objects, a dict, a tuple, something absent."""
    term = SimpleNamespace(func=abs, weight=-0.5, params={"target": 0.0, "range": (-1.0, 1.0)})
    return SimpleNamespace(
        episode_length_s=5.0,
        decimation=2,
        seed=None,
        scene=SimpleNamespace(num_envs=4096, env_spacing=4.0, ground=SimpleNamespace(size=(100.0, 100.0)), light=None),
        sim=SimpleNamespace(dt=1 / 120, device="cuda:0", physics=SimpleNamespace(use_cuda_graph=True)),
        rewards=SimpleNamespace(pole=term, alive=SimpleNamespace(weight=1), gone=None),
        compute_final_obs=False,
    )


def test_changes_reach_every_level_and_keep_types() -> None:
    cfg = task()
    tasks.change(
        cfg,
        {
            "episode_length_s": 3,
            "scene": {"ground": None, "env_spacing": 2.5, "light": {"on": True}},
            "rewards": {"pole": {"weight": -1, "params": {"target": 1, "range": [-2, 2]}}},
        },
    )
    assert (cfg.episode_length_s, type(cfg.episode_length_s)) == (3.0, float)
    assert cfg.scene.ground is None
    assert cfg.scene.env_spacing == 2.5
    assert cfg.scene.light == {"on": True}
    assert cfg.rewards.pole.weight == -1.0
    assert cfg.rewards.pole.params == {"target": 1.0, "range": (-2, 2)}
    assert cfg.decimation == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"episode_lenght_s": 3},
            "env.args.episode_lenght_s: the task has no setting 'episode_lenght_s'. Did you mean 'episode_length_s'?",
        ),
        (
            {"rewards": {"pole": {"params": {"goal": 1}}}},
            "env.args.rewards.pole.params.goal: rewards.pole.params has no setting 'goal'. It has range, target.",
        ),
        (
            {"scene": {"num_envs": 8}},
            "env.args.scene.num_envs: scene.num_envs of the task follows from the run. Set env.n_envs instead.",
        ),
        (
            {"compute_final_obs": True},
            "env.args.compute_final_obs: compute_final_obs of the task follows from the run. Leave it out.",
        ),
    ],
)
def test_changes_that_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        tasks.change(task(), changes)
    assert str(raised.value) == message


@pytest.mark.parametrize(("device", "graph"), [("cpu", False), ("cuda:1", True)])
def test_what_follows_from_the_run(monkeypatch: pytest.MonkeyPatch, device: str, graph: bool) -> None:
    monkeypatch.setattr(tasks, "load", lambda task_id, physics: task())
    cfg = tasks.Task("m:Some-Task", 64, 3, {"decimation": 4}).configuration(device)
    assert (cfg.seed, cfg.scene.num_envs, cfg.sim.device, cfg.decimation) == (3, 64, device, 4)
    assert cfg.compute_final_obs
    assert cfg.sim.physics.use_cuda_graph == graph


@pytest.mark.parametrize(
    ("wanted", "cuda", "device"),
    [
        ("auto", True, "cuda:0"),
        ("auto", False, "cpu"),
        ("cuda", True, "cuda:0"),
        ("cpu", True, "cpu"),
        ("cuda:1", True, "cuda:1"),
    ],
)
def test_device(wanted: str, cuda: bool, device: str) -> None:
    assert tasks._device(wanted, cuda) == device


def test_author_weights_are_the_managers_terms() -> None:
    assert tasks.author_weights(task()) == {"pole": -0.5, "alive": 1.0}
    assert tasks.author_weights(SimpleNamespace(reward_scale=1.0)) is None


def test_without_isaac_lab_one_paragraph_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = str(tasks.missing())
    assert text.startswith("env.vec: Isaac Lab is not installed in this environment. ")
    assert "pip install -c adapters/isaac/constraints.txt isaaclab" in text
    assert "isaaclab[isaacsim]" in text
    assert "\n" not in text

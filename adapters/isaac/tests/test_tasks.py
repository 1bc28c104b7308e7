"""Configurations of tasks: what a run may change, what follows from it, and what is said where Isaac Lab is missing."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium
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
            {"episode_length_s": {"value": 3}},
            "env.args.episode_length_s: episode_length_s of the task is 5.0 and has no settings of its own. Give it one value.",
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


# ---- Isaac Lab's own functions, as far as they are called -------------------------------------------------------------


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Modules of Isaac Lab that note how they are called; ``needs`` is for what they would start Isaac Sim."""
    seen = SimpleNamespace(launched=None, running=False, overrides=None, needs=())

    @contextmanager
    def launch_simulation(cfg: Any, runtime: Any) -> Iterator[None]:
        seen.launched, seen.running = runtime, True
        yield
        seen.running = False

    def parse_env_cfg(name: str, overrides: list[str]) -> Any:
        print("[INFO]: Parsing configuration")
        seen.overrides = overrides
        if overrides == ["physics=newtn"]:
            raise ValueError("Unknown preset(s): newtn")
        return task()

    modules = {
        "isaaclab": {},
        "isaaclab.app": {"launch_simulation": launch_simulation, "validate_launch": lambda *_: (None, seen.needs)},
        "isaaclab_tasks": {},
        "isaaclab_tasks.utils": {"parse_env_cfg": parse_env_cfg},
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    spec = gymnasium.spec("CartPole-v1")
    registered = type(spec)("Isaac-Walk", entry_point="x:Y", kwargs={"env_cfg_entry_point": "x:Cfg"})
    monkeypatch.setitem(gymnasium.registry, "Isaac-Walk", registered)
    return seen


def test_a_task_is_made_inside_its_runtime_headless_by_default(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gymnasium, "make", lambda name, cfg: (name, cfg.scene.num_envs, lab.running))
    made: list[Any] = []
    tasks.Task("json:Isaac-Walk", 8, 0, device="cpu").launch(lambda make: made.append(make()))
    assert made == [("Isaac-Walk", 8, True)]
    assert not lab.running
    assert lab.launched == {"device": "cpu", "headless": True, "visualizer": ["none"]}
    tasks.Task("Isaac-Walk", 8, 0, device="cpu", visualizer="kit", physics="newton_mjwarp").launch(lambda make: None)
    assert lab.launched == {"device": "cpu", "headless": False, "visualizer": ["kit"]}
    assert lab.overrides == ["physics=newton_mjwarp"]


def test_isaac_sim_is_asked_for_only_by_what_needs_it(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    lab.needs = ("Isaac Sim PhysX physics",)
    with pytest.raises(ConfigError) as raised:
        tasks.Task("Isaac-Walk", 8, 0, device="cpu").launch(lambda make: None)
    assert str(raised.value) == (
        "plugins.isaac: Isaac-Walk needs Isaac Sim, which is not installed, for Isaac Sim PhysX physics. Install Isaac Lab's "
        "extra isaaclab[isaacsim], or choose physics and a visualizer that go without, such as physics: newton_mjwarp."
    )
    assert lab.launched is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    tasks.Task("Isaac-Walk", 8, 0, device="cpu").launch(lambda make: None)
    assert lab.launched is not None


@pytest.mark.parametrize(
    ("name", "physics", "message"),
    [
        (
            "Isaac-Wal",
            None,
            "env.id: no task of Isaac Lab is called 'Isaac-Wal'. Did you mean 'Isaac-Walk'? A task of your own is written "
            "module:Id, where the module registers it.",
        ),
        (
            "CartPole-v1",
            None,
            "env.id: no task of Isaac Lab is called 'CartPole-v1'. A task of your own is written module:Id, where the module "
            "registers it.",
        ),
        (
            "no_such_robots:Isaac-Walk",
            None,
            "env.id: cannot import no_such_robots: No module named 'no_such_robots'.",
        ),
        (
            "Isaac-Walk",
            "newtn",
            "plugins.isaac.physics: Isaac-Walk has no physics 'newtn': Unknown preset(s): newtn.",
        ),
    ],
)
def test_tasks_that_cannot_be_loaded(lab: Any, name: str, physics: str | None, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        tasks.load(name, physics)
    assert str(raised.value) == message


def test_loading_prints_nothing(lab: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert tasks.load("Isaac-Walk").decimation == 2
    assert capsys.readouterr().out == ""

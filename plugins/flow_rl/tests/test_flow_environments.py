"""Which environments are made, and that no file has a module imported or a function called."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from budwood.api import ConfigError
from budwood_flow_rl import environments
from budwood_flow_rl.evaluation import evaluate
from budwood_flow_rl.families import RectifiedFlow
from budwood_flow_rl.normalisation import MinMax, Normalisation
from budwood_flow_rl.saved import Meta, SavedFlow

MODULE = """
from pathlib import Path
import gymnasium as gym
from gymnasium.envs.classic_control import PendulumEnv as Swing
Path(__file__).with_suffix(".imported").touch()
gym.register("Registered-v0", Swing, max_episode_steps=3)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The trace that importing ``strange_envs`` leaves."""
    (tmp_path / "strange_envs.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "strange_envs", raising=False)
    return tmp_path / "strange_envs.imported"


def flow_of(env_id: str) -> SavedFlow:
    torch.manual_seed(0)
    one = torch.ones(1)
    scales = Normalisation(MinMax(-8 * torch.ones(3), 8 * torch.ones(3)), MinMax(-2 * one, 2 * one))
    return SavedFlow(RectifiedFlow(3, 1, 1, (8, 8, 8)).eval(), scales, Meta(1, env_id, {}, {}))


@pytest.mark.parametrize("from_file", [True, False])
def test_no_function_is_called(tmp_path: Path, from_file: bool) -> None:
    trace = tmp_path / "ran"
    with pytest.raises(ConfigError, match="subprocess"):
        environments.factory("subprocess:run", {"args": ["touch", str(trace)]}, from_file=from_file)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["subprocess:Popen", "json:dumps", "collections:OrderedDict"])
def test_what_is_no_class_of_environments_is_refused_whoever_names_it(name: str) -> None:
    with pytest.raises(ConfigError, match="is no environment"):
        environments.factory(name, {})


@pytest.mark.parametrize("env_id", ["strange_envs:Registered-v0", "strange_envs:Missing-v0"])
def test_a_saved_flow_has_no_module_imported(module: Path, env_id: str) -> None:
    with pytest.raises(ConfigError, match=f"--env {env_id}"):
        evaluate(flow_of(env_id), episodes=1)
    assert not module.exists()


def test_a_person_may_name_the_module(module: Path) -> None:
    env_id = "strange_envs:Registered-v0"
    assert evaluate(flow_of(env_id), episodes=1, env_id=env_id).lengths.tolist() == [3]
    assert module.exists()


def test_arguments_of_the_file_go_with_an_environment_that_is_repeated(module: Path) -> None:
    saved = flow_of("strange_envs:Registered-v0")
    saved = replace(saved, meta=replace(saved.meta, env_args={"unknown": 1}))
    with pytest.raises(ConfigError, match="unknown"):
        evaluate(saved, episodes=1, env_id="strange_envs:Registered-v0")
    assert evaluate(saved, episodes=1, env_id="Pendulum-v1").lengths.tolist() == [200]


def test_own_modules_need_no_trust_and_names_that_only_begin_alike_do() -> None:
    environments.factory("budwood_flow_rl.point:TwoModes", {}, from_file=True)
    with pytest.raises(ConfigError, match="names the environment"):
        environments.factory("budwood_flow_rl_else:Env", {}, from_file=True)


@pytest.mark.parametrize("name", [":Env", ".relative:Env"])
def test_names_that_no_module_can_have(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot import"):
        environments.factory(name, {})

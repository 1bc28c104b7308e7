"""Runs of the online loop in memory: an environment of LeRobot, plugins that are objects of a test, and a stand-in for core.

Imports LeRobot: a test skips where it is missing before it imports this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import gymnasium as gym
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig as NativeEnvConfig
from points import Reach

from budwood import compose
from budwood.api import ALONE, Processes, Rollout, Run, hookimpl
from budwood.plugins import Activation, Active, Installed
from budwood_lerobot.online import capabilities
from budwood_lerobot.online.building import build
from budwood_lerobot.plugin import LeRobot
from budwood_lerobot.sections import Sections

LENGTH = 12
gym.register("budwood_test/Reach-v0", entry_point=Reach, max_episode_steps=LENGTH)


@NativeEnvConfig.register_subclass("budwood_reach")
@dataclass
class ReachConfig(NativeEnvConfig):
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            "action": PolicyFeature(type=FeatureType.ACTION, shape=(2,)),
            "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(2,)),
            "environment_state": PolicyFeature(type=FeatureType.ENV, shape=(2,)),
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {
            "action": "action",
            "agent_pos": "observation.state",
            "environment_state": "observation.environment_state",
        }
    )

    @property
    def gym_id(self) -> str:
        return "budwood_test/Reach-v0"

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {}


class Brings:
    """A plugin of the policy, and of whatever else a test gives it."""

    def __init__(self, policy: Any, **hooks: Any) -> None:
        self.policy = policy
        for name, answer in hooks.items():
            setattr(self, name, hookimpl(_answering(answer)))

    @hookimpl
    def build_policy(self, run: Any) -> Any:
        return self.policy


def _answering(answer: Any) -> Any:
    return lambda run: answer


def active(name: str, instance: object) -> Active:
    entry = metadata.EntryPoint(name, f"{name}:it", "budwood.plugins")
    return Active(Installed(name, entry.value, f"budwood-{name}", "1.0", "", entry), instance)


def built(
    *plugins: object,
    env: Mapping[str, Any] | None = None,
    seed: int = 0,
    precision: str = "fp32",
    processes: Processes = ALONE,
    **trainer: Any,
) -> Any:
    """The trainer of a run in memory."""
    given = {"kind": "lerobot", "algo": "online", "total_steps": 256, "rollout": 16, **trainer}
    sections = Sections.model_validate({"trainer": given, "env": {"type": "budwood_reach", "n_envs": 4, **(env or {})}})
    plain = {"env": dict(sections.env), "precision": precision}  # type: ignore[call-overload]
    run = Run("test", seed, plain, None, sections.trainer, None, None, "cpu", lambda kind: (), processes)
    activation = Activation(
        [active(f"toy{i}", plugin) for i, plugin in enumerate(plugins)], active("lerobot", LeRobot())
    )
    return build(run, compose.contributions(activation, lambda one: run, capabilities()))


class Events:
    """Stands in for core."""

    control: Any = None
    next_boundary = 0

    def __init__(self, at: Callable[[int], bool] = lambda steps: True, rollouts: bool = False) -> None:
        self.at, self.rollouts = at, rollouts
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.shown: list[Rollout] = []

    def start(self) -> bool:
        return True

    def wants_rollouts(self) -> bool:
        return self.rollouts

    def rollout_end(self, rollout: Rollout) -> None:
        self.shown.append(rollout)

    def boundary(self, steps: int) -> bool:
        return self.at(steps)

    def log(self, metrics: Mapping[str, float], steps: int) -> None:
        self.logged.append((steps, dict(metrics)))

    def finish(self) -> None: ...


def numbers_of(row: Mapping[str, float]) -> dict[str, float]:
    """What was logged, without what a clock decides."""
    return {name: value for name, value in row.items() if not name.startswith("time/")}


def numbers(events: Events) -> list[tuple[int, dict[str, float]]]:
    return [(step, numbers_of(row)) for step, row in events.logged]


def same(one: Any, other: Any) -> bool:
    first, second = one.neutral.policy.state_dict(), other.neutral.policy.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)

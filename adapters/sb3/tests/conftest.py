"""Small environments, plugins that exist only in memory, and runs of the adapter without the rest of the core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from budwood import compose
from budwood.api import Contributions, Rollout, Run
from budwood.plugins import Activation, Active, Installed
from budwood_sb3.plugin import SB3

torch.set_num_threads(1)


class Point(gym.Env):
    """A point on a line, pushed left or right, in one or two dimensions of observation.

    Reward 1 - |x|; the infos tell ``speed`` and ``effort``. Ends beyond |x| = 3; a time limit is the wrapper's business.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, discrete: bool = False, as_dict: bool = False, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        box = gym.spaces.Box(-10, 10, (2,), np.float32)
        self.observation_space = gym.spaces.Dict({"place": box, "goal": box}) if as_dict else box
        self.action_space = gym.spaces.Discrete(3) if discrete else gym.spaces.Box(-1, 1, (1,), np.float32)
        self.state = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-0.5, 0.5, 2)
        return self._observed(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        push = float(action - 1) if isinstance(self.action_space, gym.spaces.Discrete) else float(action[0])
        self.state = self.state + 0.1 * np.array([self.state[1], push])
        info = {"speed": float(self.state[1]), "effort": -(push**2)}
        return self._observed(), 1.0 - abs(self.state[0]), bool(abs(self.state[0]) > 3), False, info

    def _observed(self) -> Any:
        seen = self.state.astype(np.float32)
        return (
            {"place": seen, "goal": np.zeros(2, np.float32)}
            if isinstance(self.observation_space, gym.spaces.Dict)
            else seen
        )

    def action_masks(self) -> Any:
        return np.array([True, True, self.state[0] < 1])

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state["state"]


for name, arguments in {"Point": {}, "PointDiscrete": {"discrete": True}, "PointDict": {"as_dict": True}}.items():
    gym.register(f"{name}-v0", entry_point=Point, max_episode_steps=25, kwargs=arguments)

SECTIONS = SB3().config_model()


def run_of(trainer: Mapping[str, Any], env: Mapping[str, Any], seed: int = 0, **config: Any) -> Run:
    """A run with these two sections, validated."""
    sections = SECTIONS.model_validate({"trainer": {"kind": "sb3", **trainer}, "env": env})
    plain = {**sections.model_dump(), **config}
    return Run("test", seed, plain, None, sections.trainer, sections.env.id, None, "cpu", lambda kind: ())


def in_memory(name: str, instance: object, version: str = "1.0") -> Active:
    entry = metadata.EntryPoint(name, f"{name}:Plugin", "budwood.plugins")
    return Active(Installed(name, entry.value, f"budwood-{name.replace('_', '-')}", version, "", entry), instance)


def contributions_of(run: Run, *plugins: object) -> Contributions:
    """What these plugin objects contribute, checked against the trainer of ``run`` as in a real run."""
    actives = [in_memory(type(plugin).__name__.lower(), plugin) for plugin in plugins]
    activation = Activation(actives, in_memory("sb3", SB3()))
    return compose.contributions(activation, lambda active: run, SB3().capabilities(run, None))


class Events:
    """Stands in for core: notes what the trainer reports. ``at(steps)`` runs at a boundary; False stops."""

    control: Any = None

    def __init__(self, at: Callable[[int], bool] | None = None, every: int = 1, rollouts: bool = False) -> None:
        self.at, self.every, self.rollouts = at, every, rollouts
        self.next_boundary = every if at else 1 << 60
        self.boundaries: list[int] = []
        self.shown: list[Rollout] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.started = 0
        self.goes_on = True

    def start(self) -> bool:
        self.started += 1
        return self.goes_on

    def wants_rollouts(self) -> bool:
        return self.rollouts

    def rollout_end(self, rollout: Rollout) -> None:
        self.shown.append(rollout)

    def boundary(self, steps: int) -> bool:
        self.boundaries.append(steps)
        self.next_boundary = steps + self.every
        return self.at(steps) if self.at else True

    def log(self, metrics: Mapping[str, float], steps: int) -> None:
        self.logged.append((steps, dict(metrics)))

    def finish(self) -> None: ...


def trained(run: Run, *plugins: object, events: Events | None = None) -> Any:
    """The trainer after its whole run."""
    from budwood_sb3.trainer import build

    trainer = build(run, contributions_of(run, *plugins))
    trainer.fit(events or Events())
    return trainer


def parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.policy.state_dict().items()}


def same(first: Any, second: Any) -> bool:
    """Bit for bit."""
    one, two = parameters(first), parameters(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(name="make_run")
def _make_run() -> Any:
    return run_of


@pytest.fixture(name="contribute")
def _contribute() -> Any:
    return contributions_of


@pytest.fixture(name="train")
def _train() -> Any:
    return trained


@pytest.fixture(name="events")
def _events() -> Any:
    return Events


@pytest.fixture(name="same")
def _same() -> Any:
    return same


@pytest.fixture(name="point")
def _point() -> Any:
    return Point

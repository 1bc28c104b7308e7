"""An adapter whose training costs nothing: its policy is a number that walks at random towards higher returns.

Installed into a test's folder (fixture ``toy``), so that the processes of a study find it too. ``trainer.hold`` names a
FIFO: training waits at step ``hold_at`` until somebody has opened it for writing and closed it again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from budwood.api import Capabilities, Config, Evaluation, Seam, TrainerEvents, hookimpl


class TrainerConfig(Config):
    kind: str
    total_timesteps: int = 100
    rate: float = 0.1
    fails: bool = False
    hold: str | None = None
    hold_at: int = 50


class ToyConfig(Config):
    trainer: TrainerConfig
    env: Any = None


class Trainer:
    """A boundary every 10 steps; the policy gains ``rate`` plus noise at each."""

    n_envs = 1
    native = None

    def __init__(self, config: TrainerConfig, seed: int) -> None:
        self.config, self.total_steps = config, config.total_timesteps
        self.rng = np.random.default_rng(seed)
        self.steps, self.policy = 0, 0.0

    def fit(self, events: TrainerEvents) -> None:
        if not events.start():
            return
        while self.steps < self.total_steps:
            if self.config.fails and self.steps == 50:
                raise RuntimeError("this one fails")
            if self.config.hold and self.steps == self.config.hold_at:
                with open(self.config.hold) as gate:
                    gate.read()
            self.steps += 10
            self.policy += self.config.rate + self.rng.normal(0, 0.02)
            events.log({"toy/policy": self.policy, "toy/env_steps": float(events.control.env_steps)}, self.steps)
            if self.steps >= events.next_boundary and not events.boundary(self.steps):
                return

    def evaluate(self, episodes: int, seed: int, observer: Any = None) -> Evaluation:
        returns = self.policy + np.random.default_rng(seed).normal(0, 0.01, episodes)
        return Evaluation(returns, np.ones(episodes, dtype=int), episodes, seed)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "policy": self.policy, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        self.steps, self.policy = state["steps"], state["policy"]
        self.rng.bit_generator.state = state["rng"]
        return []

    def load_policy(self, state: dict[str, Any]) -> None:
        self.policy = state["policy"]

    def policy_state(self) -> dict[str, Any]:
        return {"policy": self.policy}

    def reset_policy(self, seed: int) -> None:
        self.policy = 0.0

    def export(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "policy.txt").write_text(repr(self.policy))
        return folder / "policy.txt"

    def close(self) -> None: ...


class Adapter:
    @hookimpl
    def config_model(self) -> type[Config]:
        return ToyConfig

    @hookimpl
    def capabilities(self, run: Any, target: Any) -> Capabilities:
        return Capabilities("toy", {"callbacks": Seam("the loop")})

    @hookimpl
    def build_trainer(self, run: Any, contributions: Any) -> Trainer:
        return Trainer(run.trainer, run.seed)

"""Doubles: steps, environments that finish episodes, a trainer's control, and a grafted run's context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from budwood.api import Contributed, Evaluation, Run, StepBatch
from budwood_reward_shaping.config import ShapingConfig
from budwood_reward_shaping.plugin import RewardShaping

torch.set_num_threads(1)


def make_batch(
    infos: Sequence[dict[str, Any]],
    dones: Sequence[bool] | None = None,
    obs: Any = None,
    actions: Any = None,
    rewards: Any = None,
    timeouts: Sequence[bool] | None = None,
) -> StepBatch:
    n = len(infos)
    batch = StepBatch()
    batch.infos = infos
    batch.dones = np.zeros(n, dtype=bool) if dones is None else np.array(dones)
    batch.timeouts = np.zeros(n, dtype=bool) if timeouts is None else np.array(timeouts)
    batch.obs = batch.next_obs = np.zeros((n, 3)) if obs is None else np.asarray(obs)
    batch.actions = np.zeros((n, 1)) if actions is None else np.asarray(actions)
    batch.rewards = np.zeros(n) if rewards is None else np.asarray(rewards, dtype=np.float64)
    return batch


class Control:
    """Evaluations play ``episodes(i)`` of info rows in two environments; everything asked for is remembered."""

    n_envs = 2
    total_steps = 10_000

    def __init__(self, play: Callable[[], list[dict[str, Any]]]) -> None:
        self.play = play
        self.steps = self.env_steps = 0
        self.logged: list[dict[str, float]] = []
        self.resets: list[int] = []
        self.seeds: list[int] = []
        self.stopped: str | None = None
        self.notes: list[str] = []
        self.policy = 0
        self.loaded: list[int] = []

    @property
    def goes_on(self) -> bool:
        return self.stopped is None and self.steps < self.total_steps

    def log(self, metrics: dict[str, float]) -> None:
        self.logged.append(dict(metrics))

    def evaluate(self, episodes: int, seed: int, observer: Any = None) -> Evaluation:
        self.seeds.append(seed)
        left = [(episodes + i) // 2 for i in range(2)]
        spent = 0
        running = {i: iter(self.play()) for i in range(2) if left[i]}
        upcoming = {i: next(rows) for i, rows in running.items()}
        while running:
            order = list(running)
            infos, dones = [], []
            for i in order:
                infos.append({**upcoming[i], "env_index": i})
                following = next(running[i], None)
                dones.append(following is None)
                upcoming[i] = following
            observer(make_batch(infos, dones))
            spent += len(order)
            for i, done in zip(order, dones, strict=True):
                if done:
                    left[i] -= 1
                    if left[i]:
                        running[i] = iter(self.play())
                        upcoming[i] = next(running[i])
                    else:
                        del running[i]
        self.env_steps += spent
        return Evaluation(np.zeros(episodes), np.ones(episodes), spent, seed)

    def reset_policy(self, seed: int) -> None:
        self.resets.append(seed)

    def policy_state(self) -> dict[str, Any]:
        return {"policy": self.policy}

    def load_policy(self, state: dict[str, Any]) -> None:
        self.policy = state["policy"]
        self.loaded.append(self.policy)

    def checkpoint(self) -> None: ...

    def stop(self, reason: str) -> None:
        self.stopped = reason

    def note(self, text: str) -> None:
        self.notes.append(text)


def make_run(section: ShapingConfig, env_id: str | None = "ReachBudget-v0", seed: int = 0, config: Any = None) -> Run:
    def components(kind: str) -> list[Contributed[Any]]:
        return [Contributed(RewardShaping().components(kind), "reward_shaping", "budwood-reward-shaping 0.1.0")]

    return Run(
        name="test",
        seed=seed,
        config=config or {},
        section=section,
        trainer=None,
        env_id=env_id,
        folder=None,
        device="cpu",
        components=components,
    )


@pytest.fixture(scope="session")
def batch() -> Callable[..., StepBatch]:
    return make_batch


@pytest.fixture
def control() -> type[Control]:
    return Control


@pytest.fixture
def run_for() -> Callable[..., Run]:
    return make_run


@pytest.fixture
def configs() -> Path:
    return Path(__file__).parents[3] / "configs" / "reward_shaping"


@pytest.fixture
def generators() -> Callable[[int], Callable[[str], np.random.Generator]]:
    return lambda seed: lambda purpose: np.random.default_rng([seed, *purpose.encode()])

"""ReachBudget: a task of which the good weights are known in closed form.

A double integrator, dt = 0.1 s, 50 steps, |a| <= 1. The task: cover x_T >= 4 with sum a^2 dt <= 1. The heuristics, as
infos of every step: ``speed`` = v dt and ``effort`` = -a^2 dt. For rho = w_speed / w_effort and no discount the best
controls are a_t = rho dt (T - t) / 2, hence x_T = 21.46 rho and sum a^2 dt = 10.73 rho^2: the task is done exactly
for rho in [0.186, 0.305]. With equal weights the policy overspends its budget.

Eight more terms are distractors, for studies of how a search copes with many: none is needed, most pull the policy away.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from budwood.api import Array, StepBatch
from budwood_reward_shaping.config import CriterionConfig
from budwood_reward_shaping.terms import BatchTerm, InfoTerm, Pack

DT, STEPS = 0.1, 50
DISTANCE, BUDGET = 4.0, 1.0
GAIN = DT**3 / 2 * sum(k * k for k in range(1, STEPS + 1))
"""x_T = GAIN rho, sum a^2 dt = GAIN rho^2 / 2."""
WINDOW = (DISTANCE / GAIN, (2 * BUDGET / GAIN) ** 0.5)
"""The ratios w_speed / w_effort that do the task."""


def _position(batch: StepBatch) -> Array:
    return np.asarray(batch.next_obs[:, 0], dtype=np.float64)


def _velocity(batch: StepBatch) -> Array:
    return np.asarray(batch.next_obs[:, 1], dtype=np.float64)


def _time_left(batch: StepBatch) -> Array:
    return np.asarray(batch.next_obs[:, 2], dtype=np.float64)


def _push(batch: StepBatch) -> Array:
    return np.clip(np.asarray(batch.actions[:, 0], dtype=np.float64), -1.0, 1.0)


DISTRACTORS = (
    BatchTerm("push", lambda b: _push(b) * DT),
    BatchTerm("brake", lambda b: -np.abs(_velocity(b)) * DT, sign="-"),
    BatchTerm("rush", lambda b: np.square(_velocity(b)) * DT, sign="+"),
    BatchTerm("early", lambda b: _velocity(b) * _time_left(b) * DT),
    BatchTerm("late", lambda b: _velocity(b) * (1.0 - _time_left(b)) * DT),
    BatchTerm("home", lambda b: -np.abs(_position(b)) * DT, sign="-"),
    BatchTerm("waves", lambda b: np.sin(3.0 * _position(b)) * DT),
    BatchTerm("clock", lambda b: np.full(len(b.dones), DT), sign="+"),
)
"""Signals in the units of ``speed``: a second of one unit is worth 1."""

_PACK = Pack(
    (InfoTerm("speed", "speed"), InfoTerm("effort", "effort", sign="-"), *DISTRACTORS),
    criteria=(
        CriterionConfig(name="distance", source="x", stat="final", op=">=", threshold=DISTANCE),
        CriterionConfig(name="budget", source="effort", stat="sum", op=">=", threshold=-BUDGET),
    ),
)
PACKS = {"ReachBudget": _PACK, "ReachBudget-v0": _PACK}
"""By class and by Gymnasium id."""


class ReachBudget(gym.Env[Array, Array]):
    """Observation (3,): position, velocity, part of the time that is left. Deterministic, always from rest at 0.

    The environment's own reward is 1 at the last step if the task is done, else 0.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own attribute
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def __init__(self, render_mode: None = None) -> None:
        self.render_mode = render_mode
        self.t, self.x, self.v, self.spent = 0, 0.0, 0.0, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.x, self.v, self.spent = 0, 0.0, 0.0, 0.0
        return self._observation(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        a = min(max(float(action[0]), -1.0), 1.0)
        cost = a * a * DT
        self.t += 1
        self.v += a * DT
        self.x += self.v * DT
        self.spent += cost
        ended = self.t == STEPS
        done = ended and self.x >= DISTANCE and self.spent <= BUDGET
        info = {"speed": self.v * DT, "effort": -cost, "x": self.x}
        return self._observation(), float(done), ended, False, info

    def _observation(self) -> Array:
        return np.array([self.x, self.v, 1.0 - self.t / STEPS], dtype=np.float32)

    def state_dict(self) -> dict[str, Any]:
        return {"t": self.t, "x": self.x, "v": self.v, "spent": self.spent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.t, self.x, self.v, self.spent = state["t"], state["x"], state["v"], state["spent"]


if "ReachBudget-v0" not in gym.registry:
    gym.register("ReachBudget-v0", entry_point=f"{__name__}:ReachBudget")

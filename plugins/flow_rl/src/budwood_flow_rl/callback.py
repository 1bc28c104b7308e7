"""What follows a run: schedules that change between iterations, and the numbers of every iteration."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from budwood.api import (
    ALONE,
    BindingError,
    BudwoodError,
    Evaluation,
    Processes,
    Rollout,
    RunCallback,
    RunControl,
    StateTree,
)
from budwood_flow_rl.config import FlowConfig, NoisyEulerConfig
from budwood_flow_rl.kernels import NoisyEuler
from budwood_flow_rl.losses import FlowObjective
from budwood_flow_rl.noise import SCHEDULES
from budwood_flow_rl.policy import FlowPolicy
from budwood_flow_rl.start import FlowStart

PLUGIN = "flow_rl"
ROWS = 256
"""Chains of a rollout that the noise of each step is averaged over, at most."""


class FlowCallback(RunCallback):
    """``model()`` is the Stable-Baselines3 model, once it is built; ``start`` makes its policy, anew after a reset.

    ``iterations`` counts those of the policy of now.
    """

    across_processes = "same"

    def __init__(
        self,
        config: FlowConfig,
        objective: FlowObjective,
        start: FlowStart,
        model: Callable[[], Any],
        processes: Processes = ALONE,
    ) -> None:
        self._processes = processes
        self.config, self.objective, self.start, self._model = config, objective, start, model
        self._followed: FlowPolicy | None = None
        self.iterations = 0
        self.progress = 0.0
        self.env_steps_before = 0
        self._metrics: dict[str, float] = {}
        self._counted: dict[str, float] = {}
        self._update_began = 0.0

    @property
    def policy(self) -> FlowPolicy:
        policy: FlowPolicy = self._model().policy.network
        return policy

    def without_rollouts(self) -> BudwoodError | None:
        return BindingError(
            "a flow policy learns from rollouts, and this trainer shows none",
            where=f"plugins.{PLUGIN}",
            do="Use trainer.algo: ppo",
        )

    def on_run_start(self, control: RunControl) -> None:
        self._counted = self._counters()
        self._follow_schedule()

    def on_rollout_end(self, control: RunControl, rollout: Rollout) -> None:
        if self.policy is not self._followed:  # reset: a critic that is new warms up, as the first one did
            self.iterations, self._followed = 0, self.policy
        counters = self._counters()
        new = {name: value - self._counted[name] for name, value in counters.items()}
        self._counted = counters
        steps = self._step_noise(rollout)
        self._metrics = {
            "env_steps": self.env_steps_before + counters["env_steps"],
            "saturation": new["saturated"] / new["decisions"],
            "cpu/physics": new["physics"],
            "cpu/sampling": new["sampling"] if new["sampling"] >= 0 else counters["sampling"],  # a policy made anew
            "sigma_mean": float(np.mean(steps)),
            **{f"sigma/step_{k}": sigma for k, sigma in enumerate(steps)},
        }
        self._update_began = time.process_time()

    def on_update_end(self, control: RunControl) -> None:
        self._metrics["cpu/update"] = sum(self._processes.gather(time.process_time() - self._update_began))
        self._metrics["warming"] = float(self.policy.warming)
        self._metrics |= self.objective.drain(self._processes)
        control.log({f"{PLUGIN}/{name}": value for name, value in self._metrics.items()})
        self.iterations += 1
        self.progress = min(1.0, control.steps / control.total_steps)
        self._follow_schedule()

    def on_eval(self, control: RunControl, evaluation: Evaluation) -> None:
        returns = {"return_without_noise": float(evaluation.returns.mean())}
        noisy = [episode["r"] for episode in self._model().ep_info_buffer or ()]
        if noisy:
            returns["return_with_noise"] = float(np.mean(noisy))
        control.log({f"{PLUGIN}/{name}": value for name, value in returns.items()})

    def state_dict(self) -> StateTree:
        return {
            "iterations": self.iterations,
            "progress": self.progress,
            "env_steps": self.env_steps_before + int(self._counted.get("env_steps", 0)),
        }

    def load_state_dict(self, state: StateTree) -> None:
        self.iterations, self.progress = state["iterations"], state["progress"]
        # Environments that can save their state bring their count along; others begin again at 0.
        self.env_steps_before = state["env_steps"] - int(self._counted.get("env_steps", 0))
        if self._counted:
            self._follow_schedule()

    def _follow_schedule(self) -> None:
        """A range changed between collection and update would change the old log-probabilities; here it does not."""
        policy = self._followed = self.policy
        self.start.progress = self.progress
        policy.warming = self.iterations < self.config.schedule.critic_warmup
        if isinstance(policy.kernel, NoisyEuler):
            assert isinstance(self.config.kernel, NoisyEulerConfig)
            policy.kernel.noise.set_range(
                *SCHEDULES[self.config.schedule.noise](self.progress, *self.config.kernel.sigma)
            )

    def _counters(self) -> dict[str, float]:
        """Counted up by the environments and the policies of all processes since they were made, evaluations left out."""
        env = self._model().env
        names = {
            "env_steps": "budwood_env_steps",
            "decisions": "decisions",
            "saturated": "saturated",
            "physics": "seconds",
        }
        here = {name: float(sum(env.get_attr(attribute))) for name, attribute in names.items()}
        everywhere = self._processes.gather({**here, "sampling": self.policy.sampling_seconds})
        return {name: sum(part[name] for part in everywhere) for name in everywhere[0]}

    def _step_noise(self, rollout: Rollout) -> list[float]:
        obs, actions = (np.asarray(array).reshape(-1, array.shape[-1]) for array in (rollout.obs, rollout.actions))
        chosen = np.linspace(0, len(obs) - 1, min(ROWS, len(obs))).astype(int)
        device = self.policy.fixed_x0.device
        rows = (torch.as_tensor(array[chosen], dtype=torch.float32, device=device) for array in (obs, actions))
        return [float(sigma) for sigma in self.policy.step_noise(*rows)]

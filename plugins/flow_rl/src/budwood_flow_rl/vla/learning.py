"""The policy loss of a run on a large policy, what it logs of every update, and the range of its noise over the run."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

from budwood.api import (
    Array,
    BindingError,
    BudwoodError,
    LossInputs,
    Objective,
    Rollout,
    RunCallback,
    RunControl,
    StateTree,
)
from budwood_flow_rl.kernels import NoisyEuler
from budwood_flow_rl.noise import SCHEDULES
from budwood_flow_rl.objective import ppo_loss
from budwood_flow_rl.vla.config import FlowNoiseConfig
from budwood_flow_rl.vla.factory import FlowVLAFactory
from budwood_flow_rl.vla.policy import FlowVLAPolicy

ROWS = 16
"""Chains of a rollout that the noise of each step is averaged over, at most."""


class FlowVLALearning(RunCallback):
    """``factory`` knows the policy once the trainer is built. ``progress`` in [0, 1] decides the range of the noise, which
    changes between an update and the next collection only."""

    def __init__(self, factory: FlowVLAFactory) -> None:
        self.factory, self.config = factory, factory.config
        self.progress = 0.0
        self._seen: dict[str, list[float]] = defaultdict(list)

    @property
    def policy(self) -> FlowVLAPolicy:
        assert self.factory.trained is not None, "the trainer has wrapped no policy"
        return self.factory.trained

    def objective(self) -> Objective:
        return Objective("flow_ppo", self.loss, frozenset({"log_prob", "old_log_prob", "advantages"}))

    def loss(self, inputs: LossInputs) -> Tensor:
        """PPO's clipped loss on the reduced log-ratio."""
        low, high = self.config.clip_range
        loss, metrics = ppo_loss(
            inputs.log_prob,
            inputs.old_log_prob,
            inputs.advantages,
            low,
            high,
            self.policy.divisor,
            self.config.clip.dual,
        )
        if not self._seen:
            self._seen["first_ratio_worst"] = [float(metrics["joint_ratio_worst"])]
        for name, value in metrics.items():
            self._seen[name].append(float(value))
        return loss

    def without_rollouts(self) -> BudwoodError | None:
        return BindingError(
            "a flow policy learns from rollouts, and this trainer shows none",
            where="plugins.flow_vla",
            do="Use trainer.algo: online",
        )

    def on_run_start(self, control: RunControl) -> None:
        self._follow_schedule()

    def on_rollout_end(self, control: RunControl, rollout: Rollout) -> None:
        actions = np.asarray(rollout.actions)
        flat = actions.reshape(-1, actions.shape[-1])
        chosen = np.linspace(0, len(flat) - 1, min(ROWS, len(flat))).astype(int)
        device = self.policy.fixed_x0.device

        def rows(array: Array) -> Tensor:
            return torch.as_tensor(array.reshape(-1, *array.shape[2:])[chosen], device=device)

        obs = {name: rows(np.asarray(value)) for name, value in rollout.obs.items()}
        steps = self.policy.step_noise(obs, rows(actions))
        metrics = {f"sigma/step_{k}": float(sigma) for k, sigma in enumerate(steps)}
        control.log({f"flow_vla/{name}": value for name, value in metrics.items()})

    def on_update_end(self, control: RunControl) -> None:
        control.log({f"flow_vla/{name}": sum(values) / len(values) for name, values in self._seen.items()})
        self._seen.clear()
        self.progress = min(1.0, control.steps / control.total_steps)
        self._follow_schedule()

    def state_dict(self) -> StateTree:
        return {"progress": self.progress}

    def load_state_dict(self, state: StateTree) -> None:
        self.progress = state["progress"]

    def _follow_schedule(self) -> None:
        kernel, config = self.policy.kernel, self.config.kernel
        if isinstance(kernel, NoisyEuler) and isinstance(config, FlowNoiseConfig):
            kernel.noise.set_range(*SCHEDULES[self.config.noise_schedule](self.progress, *config.sigma))

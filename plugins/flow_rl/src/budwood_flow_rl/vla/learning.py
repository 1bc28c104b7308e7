"""What follows a run on a large policy: its numbers of every update, the range of its noise, and which way its time runs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from budwood.api import (
    ALONE,
    Array,
    BindingError,
    BudwoodError,
    Processes,
    Rollout,
    RunCallback,
    RunControl,
    StateTree,
)
from budwood_flow_rl.convention import check_convention
from budwood_flow_rl.kernels import NoisyEuler
from budwood_flow_rl.losses import FlowObjective
from budwood_flow_rl.noise import SCHEDULES
from budwood_flow_rl.vla.config import FlowNoiseConfig
from budwood_flow_rl.vla.factory import FlowVLAFactory
from budwood_flow_rl.vla.policy import FlowVLAPolicy

PLUGIN = "flow_vla"
ROWS = 16
"""Chains of a rollout that the noise of each step is averaged over, at most."""


class FlowVLALearning(RunCallback):
    """``factory`` knows the policy once the trainer is built, ``objective`` is its loss. ``progress`` in [0, 1] decides the
    range of the noise, which changes between an update and the next collection only."""

    across_processes = "same"

    def __init__(self, factory: FlowVLAFactory, processes: Processes = ALONE) -> None:
        self._processes = processes
        self.factory, self.config = factory, factory.config
        self.objective = FlowObjective(self.config)
        self.progress = 0.0
        self._metrics: dict[str, float] = {}

    @property
    def policy(self) -> FlowVLAPolicy:
        assert self.factory.trained is not None, "the trainer has wrapped no policy"
        return self.factory.trained

    def without_rollouts(self) -> BudwoodError | None:
        return BindingError(
            "a flow policy learns from rollouts, and this trainer shows none",
            where=f"plugins.{PLUGIN}",
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
        steps = self.policy.step_noise(obs, rows(actions)).tolist()
        self._metrics = {
            "sigma_mean": sum(steps) / len(steps),
            **{f"sigma/step_{k}": sigma for k, sigma in enumerate(steps)},
        }
        if self.progress == 0:  # nothing has moved yet
            self._metrics["data_time"] = float(self._runs_in_data_time(obs))

    def on_update_end(self, control: RunControl) -> None:
        self._metrics |= self.objective.drain(self._processes)
        control.log({f"{PLUGIN}/{name}": value for name, value in self._metrics.items()})
        self.progress = min(1.0, control.steps / control.total_steps)
        self._follow_schedule()

    def state_dict(self) -> StateTree:
        return {"progress": self.progress}

    def load_state_dict(self, state: StateTree) -> None:
        self.progress = state["progress"]
        if self.factory.trained is not None:
            self._follow_schedule()

    @torch.no_grad()
    def _runs_in_data_time(self, obs: dict[str, Tensor]) -> bool:
        """Whether the velocities show it, on one observation; False if they show nothing, as random weights do.

        :raises BindingError: they show that time runs the other way.
        """
        one = self.policy.seen({name: value[:1] for name, value in obs.items()})
        generator = torch.Generator(one.device).manual_seed(0)
        return check_convention(self.policy.field, one, generator=generator) == "data time"

    def _follow_schedule(self) -> None:
        self.factory.progress = self.progress
        kernel, config = self.policy.kernel, self.config.kernel
        if isinstance(kernel, NoisyEuler) and isinstance(config, FlowNoiseConfig):
            kernel.noise.set_range(*SCHEDULES[self.config.noise_schedule](self.progress, *config.sigma))

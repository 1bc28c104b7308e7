"""From what environments give to what a policy reads, and back: the same pipelines as in LeRobot's own evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budwood.api import Array, ConfigError, ContributionError
from budwood_lerobot.online.episodes import Episodes

OBSERVATION, ACTION = "observation", "action"
Pipeline = Callable[[Any], Any]


def unchanged(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Processors:
    """``env_*`` belong to the environment, ``policy_*`` to a policy of LeRobot; a policy of a plugin has none."""

    preprocess: Pipeline
    env_pre: Pipeline = unchanged
    env_post: Pipeline = unchanged
    policy_pre: Pipeline = unchanged
    policy_post: Pipeline = unchanged
    device: str = "cpu"

    def observe(self, obs: Any, task: list[str]) -> dict[str, Tensor]:
        """Observations of a vector of n environments -> name -> (n, ...), on the policy's device."""
        batch = self.preprocess(obs)
        batch["task"] = task
        batch = self.policy_pre(self.env_pre(batch))
        seen = {
            key: value.to(self.device)
            for key, value in batch.items()
            if key.startswith(OBSERVATION) and isinstance(value, Tensor)
        }
        if not seen:
            raise ConfigError(
                f"the environment's observations become nothing that a policy can read: {', '.join(sorted(batch))}",
                where="env.type",
                do="Give them under LeRobot's names: pixels, agent_pos, environment_state",
            )
        return seen

    def command(self, steps: Tensor) -> Array:
        """(n, C, D) of a policy -> (n, C, De) as the environments take them, one step after the other."""
        commands = [
            self.env_post({ACTION: self.policy_post(steps[:, c])})[ACTION].to("cpu").numpy()
            for c in range(steps.shape[1])
        ]
        return np.stack(commands, axis=1)


class Commands:
    """Checks what is sent to environments of one action space, and keeps it within its bounds if asked to."""

    def __init__(self, space: Any, clip: bool) -> None:
        self.space, self.clip = space, clip
        if clip and not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ConfigError(
                f"the action space has infinite bounds: low {space.low.tolist()}, high {space.high.tolist()}",
                where="trainer.clip_actions",
                do="Leave actions to the environment: clip_actions: false",
            )

    def checked(self, commands: Array) -> tuple[Array, float]:
        """-> (n, C, De) in the space's own type, and which share of the numbers lay outside of the bounds."""
        width = self.space.shape[0]
        if commands.shape[-1] != width:
            raise ContributionError(
                f"the policy's steps have {commands.shape[-1]} numbers each, and the environment takes {width}",
                where="build_policy",
            )
        if not np.isfinite(commands).all():
            n, c, d = np.argwhere(~np.isfinite(commands))[0]
            raise ContributionError(
                f"the policy's action for environment {n} is {commands[n, c, d]} (step {c} of its chunk, number {d})",
                where="build_policy",
                do="Its parameters may have become NaN: lower learning_rate or set max_grad_norm",
            )
        outside = float(((commands < self.space.low) | (commands > self.space.high)).mean())
        if self.clip:
            commands = np.clip(commands, self.space.low, self.space.high)
        return commands.astype(self.space.dtype), outside


def tasks(episodes: Episodes) -> list[str]:
    """What every environment is to do, in words, as LeRobot asks for it; empty where it has no words."""
    return episodes.words("task_description") or episodes.words("task") or [""] * episodes.n


def detached(obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy on the CPU, to be kept."""
    return {key: value.detach().to("cpu", copy=True) for key, value in obs.items()}


def stacked(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """T x name -> (n, ...) to name -> (T, n, ...).

    :raises ContributionError: an observation changes its shape or its name.
    """
    first = {key: tuple(value.shape) for key, value in rows[0].items()}
    for row in rows:
        shapes = {key: tuple(value.shape) for key, value in row.items()}
        if shapes != first:
            raise ContributionError(
                f"the observations change their shape during a rollout: first {first}, then {shapes}",
                where="trainer.policy",
                do="Let the policy pad its inputs to one length, e.g. pad_language_to: max_length",
            )
    return {key: torch.stack([row[key] for row in rows]) for key in first}

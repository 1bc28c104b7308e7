"""A rollout as it is collected, and its decisions as the update draws them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budwood.api import AdvantageInputs, Array, Processes
from budwood_lerobot.online.episodes import Episode
from budwood_lerobot.online.processors import stacked

SEEN = ("obs", "actions")
NUMBERS = ("log_prob", "values", "rewards", "episode_starts", "valid")
"""What a rollout has for each decision of each environment: what an update reads of its own rows alone, and the rest."""


@dataclass
class Collected:
    """T decisions of n environments. Lists grow by one (n, ...) a decision; what concerns the end comes last.

    ``valid`` tells which environments took part: with groups, one whose episode has ended waits for the others. ``outside`` is
    the share of what was sent that lay outside of the action space's bounds, ``ended`` every episode after (decision, step of
    it, environment among all) in which it ended.
    """

    obs: list[dict[str, Tensor]] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)
    log_prob: list[Array] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)
    rewards: list[Array] = field(default_factory=list)
    episode_starts: list[Array] = field(default_factory=list)
    valid: list[Array] = field(default_factory=list)
    outside: list[float] = field(default_factory=list)
    ended: list[tuple[int, int, int, Episode]] = field(default_factory=list)
    env_steps: int = 0
    last_values: Array = field(default_factory=lambda: np.zeros(0))
    last_dones: Array = field(default_factory=lambda: np.zeros(0))

    def of_all(self, processes: Processes, seen: bool) -> Collected:
        """With the environments of all processes side by side; what was observed and done is exchanged only if ``seen``."""
        if not processes.several:
            return self
        names = (*NUMBERS, *SEEN) if seen else NUMBERS
        last = ("last_values", "last_dones")
        parts = processes.gather({name: getattr(self, name) for name in (*names, "outside", *last)})
        found: dict[str, Any] = {
            name: [_beside(at) for at in zip(*(part[name] for part in parts), strict=True)] for name in names
        }
        found |= {name: np.concatenate([part[name] for part in parts]) for name in last}
        outside = [float(np.mean(at)) for at in zip(*(part["outside"] for part in parts), strict=True)]
        return Collected(**found, outside=outside)

    def advantage_inputs(self, gamma: float, gae_lambda: float, groups: Array | None) -> AdvantageInputs:
        rewards, values, starts = (
            np.stack(part).astype(np.float32) for part in (self.rewards, self.values, self.episode_starts)
        )
        last = self.last_values.astype(np.float32), self.last_dones.astype(np.float32)
        return AdvantageInputs(rewards, values, starts, *last, gamma, gae_lambda, groups)

    def samples(self, advantages: Array, keep: Array) -> Samples:
        """The decisions of the mask ``keep`` (T, n), environment after environment, time within."""
        rows = torch.from_numpy(np.flatnonzero(keep.T))

        def flat(part: Tensor) -> Tensor:
            return part.transpose(0, 1).flatten(0, 1)[rows]

        values = torch.from_numpy(np.stack(self.values).astype(np.float32))
        given = torch.from_numpy(advantages)
        return Samples(
            {key: flat(part) for key, part in stacked(self.obs).items()},
            flat(torch.stack(self.actions)),
            flat(torch.from_numpy(np.stack(self.log_prob).astype(np.float32))),
            flat(values),
            flat(given),
            flat(given + values),
        )


@dataclass(frozen=True)
class Samples:
    """N decisions: ``obs`` name -> (N, ...), ``actions`` (N, A), the rest (N,)."""

    obs: dict[str, Tensor]
    actions: Tensor
    old_log_prob: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor

    def __len__(self) -> int:
        return len(self.actions)

    def at(self, rows: Tensor, device: str) -> Samples:
        parts = (self.actions, self.old_log_prob, self.old_values, self.advantages, self.returns)
        return Samples(
            {key: part[rows].to(device) for key, part in self.obs.items()}, *(part[rows].to(device) for part in parts)
        )


def _beside(parts: Sequence[Any]) -> Any:
    """One decision: (n, ...) of every process -> (N, ...)."""
    if isinstance(parts[0], dict):
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    return torch.cat(tuple(parts)) if isinstance(parts[0], Tensor) else np.concatenate(parts)


def minibatches(count: int, size: int, generator: np.random.Generator) -> Iterator[Tensor]:
    """Row numbers of ``count`` samples in a random order, ``size`` at a time; the last may be fewer."""
    order = torch.from_numpy(generator.permutation(count))
    for first in range(0, count, size):
        yield order[first : first + size]

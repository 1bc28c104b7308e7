"""ARS with a moment between two updates.

Its callbacks only speak inside an update: after the perturbations are drawn, and before the weights move. So a run could
be neither saved nor stopped cleanly; the subclass reports the moment before each update, and otherwise changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from budwood.api import TrainerEvents
from budwood_sb3.bridge import Bridge


class UpdateBridge(Bridge):
    """Reports a boundary when told to, not at the start of a rollout."""

    def __init__(self, events: TrainerEvents, begin: Callable[[], None]) -> None:
        super().__init__(events, begin)
        self.boundary = super()._on_rollout_start

    def _on_rollout_start(self) -> None:
        """Inside an update."""


class Boundaries(BaseAlgorithm):
    """Mixed into ARS."""

    def _do_one_update(self, callback: Any, async_eval: Any) -> None:
        for item in getattr(callback, "callbacks", [callback]):
            if isinstance(item, UpdateBridge):
                item.boundary()
        super()._do_one_update(callback, async_eval)  # type: ignore[misc]

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        """ARS gives the steps of this call of ``learn``, which after a resume are fewer than the run's."""
        super()._update_current_progress_remaining(num_timesteps, self._total_timesteps)


@cache
def with_boundaries(cls: type[BaseAlgorithm]) -> type[BaseAlgorithm]:
    """``cls`` with a boundary before each update, under the same name."""
    return type(cls.__name__, (Boundaries, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})

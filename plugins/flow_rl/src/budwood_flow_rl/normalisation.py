"""Observations and actions scaled to [-1, 1] by the least and largest value of the demonstrations, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from budwood.api import Array, BudwoodError
from budwood_flow_rl.demonstrations import DemonstrationError, Demonstrations

CONSTANT = 1e-6
"""A dimension whose range is at most this share of its size (or of 1, if that is more) is constant: rounding, not data."""
STRAY = 10.0
"""How far outside [-1, 1] a scaled value may lie, as in Stable-Baselines3's ``VecNormalize``. A dimension that hardly moved in
the data, such as a switch that no demonstration touched, would else be thousands once it does."""


class MinMax(nn.Module):
    """``scale``: x -> (x - centre) / radius, with centre (low + high) / 2 and radius (high - low) / 2, so low, high -> -1, 1.

    A dimension that is constant in the data has radius 1: the constant becomes 0 and what strays from it keeps its unit,
    where division by its range would blow rounding up to full scale. ``low``, ``high``: (n,) finite.
    """

    low: Tensor
    high: Tensor
    centre: Tensor
    radius: Tensor

    def __init__(self, low: Array, high: Array) -> None:
        super().__init__()
        low, high = np.asarray(low, dtype=np.float32), np.asarray(high, dtype=np.float32)
        if low.ndim != 1 or low.shape != high.shape or not (np.isfinite(low) & np.isfinite(high) & (low <= high)).all():
            raise BudwoodError(
                f"a range needs finite low <= high of one shape (n,), not {low.tolist()} and {high.tolist()}",
                where="normalisation",
                do="Take it from demonstrations without NaN and infinities",
            )
        flat = self._flat(low, high)
        radius = np.where(flat, 1.0, (high.astype(np.float64) - low) / 2)
        centre = (low.astype(np.float64) + high) / 2
        for name, value in (("low", low), ("high", high), ("centre", centre), ("radius", radius)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32))

    @classmethod
    def of(cls, rows: Array, what: str = "values") -> MinMax:
        """The range of ``rows`` (N, n). :raises DemonstrationError: there are none, or one is not finite."""
        if len(rows) == 0 or not np.isfinite(rows).all():
            problem = "there are none" if len(rows) == 0 else "NaN or infinities are among them"
            raise DemonstrationError(f"{what} have no range: {problem}", do="Record the demonstrations again")
        return cls(rows.min(axis=0), rows.max(axis=0))

    @property
    def constant(self) -> list[int]:
        """The dimensions that do not vary in the data."""
        flat = self._flat(self.low.cpu().numpy(), self.high.cpu().numpy())
        return [int(i) for i in np.flatnonzero(flat)]

    def scale(self, x: Tensor) -> Tensor:
        """(..., n) in the data's units -> (..., n), within +-STRAY."""
        return ((x - self.centre) / self.radius).clamp(-STRAY, STRAY)

    def unscale(self, y: Tensor) -> Tensor:
        """(..., n) -> (..., n) in the data's units."""
        return self.centre + self.radius * y

    @staticmethod
    def _flat(low: Array, high: Array) -> Array:
        size = np.maximum(np.maximum(np.abs(low), np.abs(high)), 1.0).astype(np.float64)
        flat: Array = high.astype(np.float64) - low <= CONSTANT * size
        return flat


class Normalisation(nn.Module):
    """``observations`` (O,) and ``actions`` (D,), a :class:`MinMax` each."""

    observations: MinMax
    actions: MinMax

    def __init__(self, observations: MinMax, actions: MinMax) -> None:
        super().__init__()
        self.observations, self.actions = observations, actions

    @classmethod
    def of(cls, demonstrations: Demonstrations) -> Normalisation:
        observations = MinMax.of(demonstrations.observations, "observations")
        return cls(observations, MinMax.of(demonstrations.actions, "actions"))

    @property
    def notes(self) -> list[str]:
        """What to say about dimensions that do not vary, a sentence each."""
        return [
            f"constant in the demonstrations: {name} dimensions {', '.join(map(str, part.constant))}; "
            "scaled to 0, and what strays from the constant keeps its unit"
            for name, part in (("observation", self.observations), ("action", self.actions))
            if part.constant
        ]

    def as_json(self) -> dict[str, Any]:
        """float32 as the shortest decimal that gives the same float32 back."""
        return {
            name: {"low": _plain(part.low), "high": _plain(part.high)}
            for name, part in (("observations", self.observations), ("actions", self.actions))
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Normalisation:
        parts = (data["observations"], data["actions"])
        return cls(*(MinMax(np.array(part["low"]), np.array(part["high"])) for part in parts))


def _plain(values: Tensor) -> list[float]:
    return [float(str(value)) for value in values.cpu().numpy()]

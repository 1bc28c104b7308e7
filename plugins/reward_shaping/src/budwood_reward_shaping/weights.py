"""Static weights: one positive number a term, kept as logarithms.

``phi`` (n,) are log-weights, ``w = exp(clip(phi, log w_min, log w_max))``. Scaling all weights of a reward leaves its
optimal policies unchanged, so along (1, ..., 1) the task's performance has no slope when nothing else is in the reward.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from budwood.api import Array


@dataclass(frozen=True)
class StaticWeights:
    """The space of weights. ``scale_free``: nothing with a fixed weight is in the reward, so only ratios matter."""

    lowest: float
    highest: float
    scale_free: bool

    @property
    def log_bounds(self) -> tuple[float, float]:
        return float(np.log(self.lowest)), float(np.log(self.highest))

    def weights(self, phi: Array) -> Array:
        low, high = self.log_bounds
        bounded: Array = np.clip(phi, low, high)
        return np.exp(bounded)

    def project(self, gradient: Array) -> Array:
        """Without its part along the direction in which only the scale changes."""
        if not self.scale_free:
            return gradient
        return gradient - float(gradient.mean())

    def step(self, phi: Array, gradient: Array, lr: float) -> Array:
        """phi + lr g / |g|, inside the bounds."""
        low, high = self.log_bounds
        return np.clip(phi + lr * gradient / np.linalg.norm(gradient), low, high)

    def draw(self, rng: np.random.Generator, count: int, size: int) -> Array:
        """(count, size) log-weights, uniform inside the bounds."""
        return rng.uniform(*self.log_bounds, (count, size))

    def coordinates(self, phi: Array) -> Array:
        """(..., n) -> (..., n): where novelty is measured. [-1, 1] a weight; without the common scale if that is free."""
        low, high = self.log_bounds
        z = 2.0 * (phi - low) / (high - low) - 1.0
        return z - z.mean(axis=-1, keepdims=True) if self.scale_free else z

"""Spaces of weights: what the search moves, and what it means.

``phi`` (P,) are the parameters, ``w`` the n weights of the terms. Scaling all weights of a reward leaves its optimal
policies unchanged, so along (1, ..., 1) in log-weights the task's performance has no slope when nothing else is in the
reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from budwood.api import Array


class WeightSpace(Protocol):
    """What the outer loop, the hypergradient and the reward need of a parametrisation. ``needs_obs``: w depends on it."""

    @property
    def needs_obs(self) -> bool: ...

    def start(self, weights: Array) -> Array:
        """phi (P,) that means ``weights`` (n,)."""

    def weights(self, phi: Array) -> Array:
        """(n,) weights; their mean over states where they depend on the state."""

    def spread(self, phi: Array) -> Array | None:
        """(n,) standard deviation over states, None where weights are the same in all."""

    def bound(self, phi: Array) -> Array:
        """The nearest phi inside the bounds."""

    def project(self, gradient: Array) -> Array:
        """Without its part along the direction in which only the scale changes."""

    def draw(self, rng: np.random.Generator, count: int, size: int) -> Array:
        """(count, size) random phi that cover the space."""

    def noise(self, rng: np.random.Generator, count: int, size: int) -> Array:
        """(count, size) Gaussian moves of phi, of about 1 in every log-weight."""

    def sweep(self, point: Array) -> Array:
        """phi of a point of the unit cube (n,), the same weights in every state."""

    def coordinates(self, phi: Array) -> Array:
        """(..., P) -> (..., d): where novelty is measured."""

    def pullback(self, phi: Array, scales: Array, adjoint: Array, terms: Array, obs: Any | None) -> Array:
        """(P,) derivative of sum_t c_t w(s_t) . (scales R_t): ``adjoint`` c (T, m), ``terms`` R (T, m, n), ``obs`` raw."""


@dataclass(frozen=True)
class StaticWeights:
    """``w = exp(clip(phi, log lowest, log highest))``, the same in every state.

    ``scale_free``: nothing with a fixed weight is in the reward, so only ratios matter.
    """

    lowest: float
    highest: float
    scale_free: bool
    needs_obs = False

    @property
    def log_bounds(self) -> tuple[float, float]:
        return float(np.log(self.lowest)), float(np.log(self.highest))

    def start(self, weights: Array) -> Array:
        logs: Array = np.log(np.asarray(weights, dtype=np.float64))
        return logs

    def weights(self, phi: Array) -> Array:
        return np.exp(self.bound(phi))

    def spread(self, phi: Array) -> Array | None:
        return None

    def bound(self, phi: Array) -> Array:
        low, high = self.log_bounds
        bounded: Array = np.clip(phi, low, high)
        return bounded

    def project(self, gradient: Array) -> Array:
        if not self.scale_free:
            return gradient
        return gradient - float(gradient.mean())

    def draw(self, rng: np.random.Generator, count: int, size: int) -> Array:
        """(count, size) log-weights, uniform inside the bounds."""
        return rng.uniform(*self.log_bounds, (count, size))

    def noise(self, rng: np.random.Generator, count: int, size: int) -> Array:
        return rng.normal(size=(count, size))

    def sweep(self, point: Array) -> Array:
        """Uniform in log-weights, inside the bounds."""
        low, high = self.log_bounds
        return low + (high - low) * point

    def coordinates(self, phi: Array) -> Array:
        """(..., n) -> (..., n): [-1, 1] a weight; without the common scale if that is free."""
        low, high = self.log_bounds
        z = 2.0 * (phi - low) / (high - low) - 1.0
        return z - z.mean(axis=-1, keepdims=True) if self.scale_free else z

    def pullback(self, phi: Array, scales: Array, adjoint: Array, terms: Array, obs: Any | None) -> Array:
        """w_k sum_t c_t s_k R_kt"""
        gradient: Array = self.weights(phi) * scales * np.einsum("tn,tnk->k", adjoint, terms)
        return gradient


@dataclass(frozen=True)
class SimplexWeights(StaticWeights):
    """``w = n softmax(phi)``: n weights that sum to n, so only ratios are searched whatever else is in the reward.

    The bounds hold for exp(phi): no ratio of two weights exceeds highest / lowest.
    """

    def start(self, weights: Array) -> Array:
        """In the middle of the box, so that ratios which fit into it are not clipped."""
        logs = np.log(np.asarray(weights, dtype=np.float64))
        low, high = self.log_bounds
        centred: Array = logs + (low + high - logs.min() - logs.max()) / 2.0
        return centred

    scale_free: bool = True

    def weights(self, phi: Array) -> Array:
        powers = np.exp(self.bound(phi))
        normalised: Array = len(powers) * powers / powers.sum()
        return normalised

    def sweep(self, point: Array) -> Array:
        """Uniform on the simplex, but for the bounds: spacings of exponential variables."""
        shares = -np.log(np.clip(point, 1e-12, 1.0 - 1e-12))
        return self.bound(self.start(len(shares) * shares / shares.sum()))

    def pullback(self, phi: Array, scales: Array, adjoint: Array, terms: Array, obs: Any | None) -> Array:
        """w_k (G_k - sum_j w_j G_j / n) with G_k = sum_t c_t s_k R_kt"""
        weights = self.weights(phi)
        pulls = scales * np.einsum("tn,tnk->k", adjoint, terms)
        gradient: Array = weights * (pulls - weights @ pulls / len(weights))
        return gradient

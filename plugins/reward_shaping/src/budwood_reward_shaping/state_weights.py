"""Weights that depend on the state: ``w(s) = n softmax(clip(MLP_phi(norm(s))))`` over the n terms.

phi (P,) are the network's parameters in a row: D -> 64 -> 64 -> n with tanh. Its output is centred and clipped to the log
bounds, so that no ratio of two weights exceeds highest / lowest. The observations are those before any normalisation by the
trainer; the normaliser comes from the first rollout and then stays, as do the states on which functions are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from budwood.api import Array, StateTree
from budwood_reward_shaping.combination import WeightedTerms
from budwood_reward_shaping.terms import Term
from budwood_reward_shaping.weights import WeightSpace

HIDDEN = 64
PROBES = 64
"""On how many states of the first rollout weight functions are compared."""
FAR = 10.0
"""Normalised observations are cut off here."""


def flatten(obs: Any) -> Array:
    """(N, ...), or a dict of such, to (N, D) float64; the parts of a dict by name."""
    if isinstance(obs, Mapping):
        return np.concatenate([flatten(obs[key]) for key in sorted(obs)], axis=1)
    rows = np.asarray(obs, dtype=np.float64)
    return rows.reshape(len(rows), -1)


class StateWeights:
    """Implements :class:`~budwood_reward_shaping.weights.WeightSpace` once :meth:`freeze` has seen observations."""

    needs_obs = True

    def __init__(self, lowest: float, highest: float, terms: int) -> None:
        self.low, self.high = float(np.log(lowest)), float(np.log(highest))
        self.terms = terms
        self.mean: Array | None = None

    # ---- what the first rollout decides ------------------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        return self.mean is not None

    def freeze(self, obs: Any, rng: np.random.Generator) -> None:
        """Take normaliser and probe states from observations (N, ...)."""
        rows = flatten(obs)
        spread = rows.std(axis=0)
        self.mean, self.std = rows.mean(axis=0), np.where(spread > 0, spread, 1.0)
        self.probes = self._normalised(rows[rng.choice(len(rows), PROBES, replace=len(rows) < PROBES)])

    def _normalised(self, rows: Array) -> Array:
        clipped: Array = np.clip((rows - self.mean) / self.std, -FAR, FAR)
        return clipped

    @property
    def _sizes(self) -> list[tuple[int, int]]:
        assert self.mean is not None
        return [(len(self.mean), HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, self.terms)]

    # ---- the network -------------------------------------------------------------------------------------------------

    def __call__(self, phi: Array, obs: Any) -> Array:
        """(N, n) weights in the states ``obs`` (N, ...)."""
        return self._network(phi, self._normalised(flatten(obs)))

    def _network(self, phi: Array, x: Array) -> Array:
        """Every row is multiplied on its own: what it gives does not depend on the rows beside it, bit for bit."""
        hidden, position = x[:, None, :], 0
        for layer, (inputs, outputs) in enumerate(self._sizes):
            matrix = phi[position : position + inputs * outputs].reshape(inputs, outputs)
            position += inputs * outputs
            hidden = np.matmul(hidden, matrix) + phi[position : position + outputs]
            position += outputs
            if layer < 2:
                hidden = np.tanh(hidden)
        logits = hidden[:, 0, :]
        powers = np.exp(np.clip(logits - logits.mean(axis=1, keepdims=True), self.low, self.high))
        weights: Array = self.terms * powers / powers.sum(axis=1, keepdims=True)
        return weights

    def _torch_network(self, phi: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The same, differentiable in phi."""
        hidden, position = x, 0
        for layer, (inputs, outputs) in enumerate(self._sizes):
            matrix = phi[position : position + inputs * outputs].view(inputs, outputs)
            position += inputs * outputs
            hidden = hidden @ matrix + phi[position : position + outputs]
            position += outputs
            if layer < 2:
                hidden = torch.tanh(hidden)
        logits = (hidden - hidden.mean(dim=1, keepdim=True)).clamp(self.low, self.high)
        return self.terms * torch.softmax(logits, dim=1)

    # ---- the space ---------------------------------------------------------------------------------------------------

    def start(self, weights: Array) -> Array:
        """Hidden layers under a fixed seed, a last layer that is zero but for its bias: ``weights`` in every state."""
        phi = self._drawn(np.random.default_rng(0), 0.0)
        phi[-self.terms :] = np.log(np.asarray(weights, dtype=np.float64))
        return phi

    def _drawn(self, rng: np.random.Generator, last: float) -> Array:
        """Random hidden layers as PyTorch makes them, the last layer's matrix Gaussian of spread ``last`` in the logits."""
        parts = []
        for inputs, outputs in self._sizes[:2]:
            parts.append(rng.uniform(-(inputs**-0.5), inputs**-0.5, (inputs + 1) * outputs))
        parts.append(last * HIDDEN**-0.5 * rng.normal(size=HIDDEN * self.terms))
        return np.concatenate([*parts, np.zeros(self.terms)])

    def weights(self, phi: Array) -> Array:
        """(n,) mean over the probe states."""
        mean: Array = self._network(phi, self.probes).mean(axis=0)
        return mean

    def spread(self, phi: Array) -> Array:
        spread: Array = self._network(phi, self.probes).std(axis=0)
        return spread

    def bound(self, phi: Array) -> Array:
        """The network's output is bounded, not its parameters."""
        return phi

    def project(self, gradient: Array) -> Array:
        """The softmax has no scale of its own."""
        return gradient

    def draw(self, rng: np.random.Generator, count: int, size: int) -> Array:
        """(count, size) networks whose weights differ between states, around a point of the box of log-weights each."""
        drawn = np.stack([self._drawn(rng, (self.high - self.low) / 2) for _ in range(count)])
        drawn[:, -self.terms :] = rng.uniform(self.low, self.high, (count, self.terms))
        return drawn

    def noise(self, rng: np.random.Generator, count: int, size: int) -> Array:
        """(count, size) moves; a matrix of ``inputs`` rows is moved by 1 / sqrt(inputs), so that its output moves by 1."""
        scales = [np.full((inputs + 1) * outputs, inputs**-0.5) for inputs, outputs in self._sizes[:2]]
        scales += [np.full(HIDDEN * self.terms, HIDDEN**-0.5), np.ones(self.terms)]
        moves: Array = rng.normal(size=(count, size)) * np.concatenate(scales)
        return moves

    def sweep(self, point: Array) -> Array:
        return self.start(np.exp(self.low + (self.high - self.low) * point))

    def coordinates(self, phi: Array) -> Array:
        """(..., P) -> (..., 64 n): centred log-weights at the probe states in units of half the box. A distance is the root
        mean square over states, so it does not grow with how many there are."""
        rows = phi.reshape(-1, phi.shape[-1])
        logs = np.log(np.stack([self._network(row, self.probes) for row in rows]))  # (M, 64, n)
        z = 2.0 * (logs - logs.mean(axis=2, keepdims=True)) / (self.high - self.low) / PROBES**0.5
        flat: Array = z.reshape(*phi.shape[:-1], -1)
        return flat

    def pullback(self, phi: Array, scales: Array, adjoint: Array, terms: Array, obs: Any | None) -> Array:
        """One backward pass through the network in all states ``obs`` (T, m, ...)."""
        rows = merged(obs)
        parameters = torch.tensor(phi, requires_grad=True)
        weights = self._torch_network(parameters, torch.from_numpy(self._normalised(flatten(rows))))  # (T m, n)
        pulls = torch.from_numpy((adjoint[..., None] * terms * scales).reshape(-1, self.terms))
        (gradient,) = torch.autograd.grad((weights * pulls).sum(), parameters)
        result: Array = gradient.numpy()
        return result

    # ---- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> StateTree:
        if self.mean is None:
            return {"mean": None}
        return {"mean": self.mean, "std": self.std, "probes": self.probes}

    def load_state_dict(self, state: StateTree) -> None:
        self.mean = None
        if state["mean"] is not None:
            self.mean, self.std, self.probes = (np.array(state[key]) for key in ("mean", "std", "probes"))


class StateWeightedTerms(WeightedTerms):
    """With weights that depend on the observation, once :meth:`follow` has been called; the given ones until then."""

    needs_obs = True

    def __init__(
        self, terms: Sequence[Term], weights: Array, scales: Array, w_task: float, space: StateWeights
    ) -> None:
        super().__init__(terms, weights, scales, w_task)
        self.space = space
        self.phi: Array | None = None

    def follow(self, space: WeightSpace, phi: Array) -> None:
        self.phi = phi.copy()
        super().follow(space, phi)

    def __call__(self, terms: Array, obs: Any | None) -> Array:
        if self.phi is None:
            return super().__call__(terms, obs)
        if self._signs.left > 0:
            self._signs(terms)
        coefficients = self.space(self.phi, obs) * self.scales  # (N, n)
        reward: Array = coefficients[:, 0] * terms[:, self.columns[0]]
        for number, column in enumerate(self.columns[1:], 1):
            reward += coefficients[:, number] * terms[:, column]
        for column, weight in self._fixed:
            reward += weight * terms[:, column]
        return reward

    def state_dict(self) -> StateTree:
        phi = None if self.phi is None else self.phi.copy()
        return {**super().state_dict(), "phi": phi, "space": self.space.state_dict()}

    def load_state_dict(self, state: StateTree) -> None:
        super().load_state_dict(state)
        self.space.load_state_dict(state["space"])
        self.phi = None if state["phi"] is None else np.array(state["phi"])


def merged(obs: Any) -> Any:
    """(T, m, ...) -> (T m, ...)"""
    if isinstance(obs, Mapping):
        return {key: merged(part) for key, part in obs.items()}
    return np.asarray(obs).reshape(-1, *np.shape(obs)[2:])

"""The score-function estimate: a slope from performance alone, for any trainer.

grad_phi E_e P(phi + sigma e) = E_e[P(phi + sigma e) e] / sigma over Gaussian e, from B inner loops whose e come in pairs of
opposite sign.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from budwood.api import Array, StateTree
from budwood_reward_shaping.weights import WeightSpace


def score_gradient(noise: Array, performance: Array, sigma: float) -> Array:
    """(P,) slope from ``noise`` (B, P), in pairs e and -e, and the ``performance`` (B,) of phi + sigma e."""
    slope: Array = (performance - performance.mean()) @ noise / (len(noise) * sigma)
    return slope


def antithetic(noise: Array) -> Array:
    """(B / 2, P) -> (B, P): every row is followed by its opposite."""
    return np.stack([noise, -noise], axis=1).reshape(-1, noise.shape[1])


class Probing:
    """One round of ``samples`` inner loops around ``centre`` after another; ``phi`` is what to train under now.

    A probe that succeeds is evaluated more than once; its mean counts.
    """

    def __init__(
        self, space: WeightSpace, samples: int, sigma: float, generators: Callable[[str], np.random.Generator]
    ) -> None:
        self.space, self.samples, self.sigma, self._generators = space, samples, sigma, generators
        self.round = 0

    def begin(self, centre: Array) -> Array:
        """A round around ``centre``; its first probe."""
        self.centre = centre
        self.round += 1
        self.done: list[float] = []
        self.readings: list[float] = []
        return self.phi

    @property
    def noise(self) -> Array:
        rng = self._generators(f"probes {self.round}")
        return antithetic(self.space.noise(rng, self.samples // 2, len(self.centre)))

    @property
    def phi(self) -> Array:
        return self.space.bound(self.centre + self.sigma * self.noise[len(self.done)])

    def read(self, p: float) -> None:
        """The probe in hand was evaluated."""
        self.readings.append(p)

    def advance(self) -> bool:
        """On to the next probe; False if the round is complete."""
        self.done.append(float(np.mean(self.readings)))
        self.readings = []
        return len(self.done) < self.samples

    def gradient(self) -> Array | None:
        """Of a complete round; None where all probes did equally well."""
        performance = np.array(self.done)
        return score_gradient(self.noise, performance, self.sigma) if np.ptp(performance) > 0 else None

    def state_dict(self) -> StateTree:
        return {
            "centre": self.centre.copy(),
            "round": self.round,
            "done": list(self.done),
            "readings": list(self.readings),
        }

    def load_state_dict(self, state: StateTree) -> None:
        self.centre, self.round = np.array(state["centre"]), state["round"]
        self.done, self.readings = list(state["done"]), list(state["readings"])

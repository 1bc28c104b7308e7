"""How far the outer loop moves along a hypergradient."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from budwood.api import Array, StateTree


class Ascent(Protocol):
    def move(self, gradient: Array) -> Array:
        """(P,) step for a gradient (P,) that is not zero."""

    def restart(self) -> None:
        """phi was put somewhere else: what was remembered of gradients belongs to another place."""

    def state_dict(self) -> StateTree: ...

    def load_state_dict(self, state: StateTree) -> None: ...


class Normalised:
    """lr g / |g|: steps of one length, since the scale of a hypergradient means little."""

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def move(self, gradient: Array) -> Array:
        step: Array = self.lr * gradient / np.linalg.norm(gradient)
        return step

    def restart(self) -> None: ...

    def state_dict(self) -> StateTree:
        return {}

    def load_state_dict(self, state: StateTree) -> None: ...


class Adam:
    """Kingma and Ba (arXiv 1412.6980), ascending, with their defaults: for the many parameters of a network."""

    BETAS, EPSILON = (0.9, 0.999), 1e-8

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self.restart()

    def restart(self) -> None:
        self.count = 0
        self.moments: tuple[Array, Array] | None = None

    def move(self, gradient: Array) -> Array:
        first, second = self.moments or (np.zeros_like(gradient), np.zeros_like(gradient))
        one, two = self.BETAS
        self.count += 1
        self.moments = first, second = one * first + (1 - one) * gradient, two * second + (1 - two) * gradient**2
        unbiased, spread = first / (1 - one**self.count), second / (1 - two**self.count)
        step: Array = self.lr * unbiased / (np.sqrt(spread) + self.EPSILON)
        return step

    def state_dict(self) -> StateTree:
        moments = None if self.moments is None else [moment.copy() for moment in self.moments]
        return {"count": self.count, "moments": moments}

    def load_state_dict(self, state: StateTree) -> None:
        self.count = state["count"]
        self.moments = None
        if state["moments"] is not None:
            first, second = (np.array(moment) for moment in state["moments"])
            self.moments = first, second

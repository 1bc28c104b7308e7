"""What a search leaves behind: the policy of the best weights, or the best of some trained afresh under them.

The best of several policies by its own evaluation is flattered by that choice; ``final/P``, the mean over all that were
trained afresh, is not. Only one policy is kept in memory.
"""

from __future__ import annotations

import numpy as np

from budwood.api import Array, RunControl, StateTree

RESAMPLES = 10_000


def interval(values: Array, rng: np.random.Generator) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean of (n,) values; with few of them it is too narrow."""
    means = rng.choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


class Kept:
    """The best policy so far. Between :meth:`leave` and more training, the policy in training is set aside.

    ``score`` is (P, part of criteria met) of the policy kept.
    """

    def __init__(self) -> None:
        self.policy: StateTree | None = None
        self.score = (-1.0, -1.0)
        self.current = False
        self._aside: StateTree | None = None

    def keep(self, control: RunControl, score: tuple[float, float]) -> None:
        """The policy in training is the best so far."""
        self.policy, self.score, self.current = control.policy_state(), score, True

    @property
    def left(self) -> bool:
        """Whether the policy in training is the best, or has been set aside for it."""
        return self.current or self._aside is not None

    def moved(self) -> None:
        """The policy in training has been updated: the one set aside is not it any more."""
        self.current, self._aside = False, None

    def forget(self) -> None:
        """What comes is judged anew."""
        self.score = (-1.0, -1.0)

    def leave(self, control: RunControl) -> None:
        """Make the best policy the one that is saved and exported now."""
        if self.policy is None or self.left:
            return
        self._aside = control.policy_state()
        control.load_policy(self.policy)

    def state_dict(self) -> StateTree:
        return {"policy": self.policy, "score": list(self.score), "current": self.current, "aside": self._aside}

    def load_state_dict(self, state: StateTree, control: RunControl) -> None:
        """Training goes on with the policy that was set aside, if there is any left to do."""
        self.policy, self.current, self._aside = state["policy"], state["current"], state["aside"]
        first, second = state["score"]
        self.score = first, second
        if self._aside is not None and control.goes_on:
            control.load_policy(self._aside)
            self._aside = None


class Retraining:
    """``count`` policies after one another, each from scratch under the same weights; ``results`` (P each) so far."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.started = False
        self.results: list[float] = []

    @property
    def active(self) -> bool:
        return self.started and len(self.results) < self.count

    def metrics(self, rng: np.random.Generator) -> dict[str, float]:
        """The last result, and of all once there is more than one: mean and 95 % interval."""
        numbers = {f"final/P_{len(self.results)}": self.results[-1], "final/P": float(np.mean(self.results))}
        if len(self.results) > 1:
            numbers["final/P_low"], numbers["final/P_high"] = interval(np.array(self.results), rng)
        return numbers

    def state_dict(self) -> StateTree:
        return {"started": self.started, "results": list(self.results)}

    def load_state_dict(self, state: StateTree) -> None:
        self.started, self.results = state["started"], list(state["results"])

"""The search over weights as a state machine that knows no trainer.

``propose()`` gives the weights to train under. ``report(P, gradient)`` says how well the task was then done and what the
hypergradient was; its answer is the next move. Every baseline is the same machine with parts switched off, so comparisons
share one code path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from budwood.api import Array, StateTree
from budwood_reward_shaping import novelty
from budwood_reward_shaping.config import Baseline, ExploreConfig, OuterConfig
from budwood_reward_shaping.weights import StaticWeights

Kind = Literal["gradient", "jump", "hold", "best"]
Generators = Callable[[str], np.random.Generator]
"""Purpose -> a fresh generator, always the same for the same purpose: nothing random needs to be saved."""


@dataclass(frozen=True)
class Parts:
    """What is switched on: gradient steps, when to jump, and whether the policy starts afresh after each kind of move."""

    gradient: bool
    jump: Literal["never", "stalled", "always"]
    reset: bool


PARTS: Mapping[Baseline, Parts] = {
    "oracle": Parts(gradient=False, jump="never", reset=False),
    "uniform": Parts(gradient=False, jump="never", reset=False),
    "constant_reset": Parts(gradient=False, jump="never", reset=True),
    "gradient": Parts(gradient=True, jump="never", reset=False),
    "gradient_reset": Parts(gradient=True, jump="never", reset=True),
    "random": Parts(gradient=False, jump="always", reset=True),
}


@dataclass(frozen=True)
class Trial:
    """Log-weights (n,) that were trained under, and the performance reached."""

    phi: Array
    p: float
    soft: float


@dataclass(frozen=True)
class Decision:
    """The next move. ``gradient``: a step along it; ``jump``: to novel weights; ``hold``: the same weights again;
    ``best``: the search is over and the best weights found are kept. ``novelty`` is the score of a jump's target."""

    kind: Kind
    reset: bool = False
    novelty: float = 0.0


class OuterLoop:
    """``terms`` weights in ``space``, starting at ``initial`` (terms,)."""

    def __init__(
        self,
        initial: Array,
        space: StaticWeights,
        outer: OuterConfig,
        explore: ExploreConfig,
        baseline: Baseline | None,
        generators: Generators,
    ) -> None:
        self.space, self.outer, self.explore = space, outer, explore
        self.novelty = "uniform" if baseline == "random" else explore.novelty
        self.parts = PARTS[baseline] if baseline else Parts(True, "stalled", outer.reset_on_gradient)
        self._jump_resets = self.parts.reset if baseline else explore.reset == "fresh"
        self._generators = generators
        self.phi = np.log(np.asarray(initial, dtype=np.float64))
        self.trials: list[Trial] = []
        self.successes = 0
        self.over = False

    @property
    def solved(self) -> bool:
        return self.successes >= self.outer.consecutive

    @property
    def best(self) -> Trial:
        """The trial of highest P, then highest part of criteria met; the first of equals."""
        return max(self.trials, key=lambda trial: (trial.p, trial.soft))

    def propose(self) -> Array:
        """(n,) weights to train under now."""
        return self.space.weights(self.phi)

    def report(self, p: float, gradient: Array | None, soft: float = 0.0) -> Decision:
        """``p`` the task performance under the proposed weights; ``gradient`` (n,) dJ/dphi, None if there was none."""
        self.trials.append(Trial(self.phi.copy(), p, soft))
        success = p >= self.explore.p_target
        self.successes = self.successes + 1 if success else 0
        self.over = self.solved or len(self.trials) >= self.outer.steps
        if self.over and not self.solved:
            return self._keep_best()
        if success:
            return Decision("hold")
        direction = None if gradient is None else self.usable(gradient)
        if self._jumps(p, direction):
            return self._jump()
        if direction is None or not self.parts.gradient:
            return Decision("hold", reset=self.parts.reset)
        self.phi = self.space.step(self.phi, direction, self.outer.lr)
        return Decision("gradient", reset=self.parts.reset)

    def usable(self, gradient: Array) -> Array | None:
        """The gradient as it would be followed, None if nothing of it is left."""
        direction = self.space.project(gradient)
        return direction if np.linalg.norm(direction) > 0 else None

    def stalled(self) -> bool:
        """Whether the last trials brought nothing over what was reached before them."""
        window, history = self.outer.stall_window, [trial.p for trial in self.trials]
        return len(history) > window and max(history[-window:]) < max(history[:-window]) + self.outer.stall_delta

    def _jumps(self, p: float, direction: Array | None) -> bool:
        if self.parts.jump != "stalled":
            return self.parts.jump == "always"
        if direction is not None and not self.stalled():
            return False
        low, high = self.explore.probability
        probability = min(max(1.0 - p / self.explore.p_target, low), high)
        return bool(self._generators(f"jump or not {len(self.trials)}").random() < probability)

    def _jump(self) -> Decision:
        rng = self._generators(f"jump {len(self.trials)}")
        candidates = self.space.draw(rng, self.explore.candidates, len(self.phi))  # (M, n)
        tried = self.space.coordinates(np.stack([trial.phi for trial in self.trials]))  # (N, n)
        z = self.space.coordinates(candidates)
        new = novelty.SCORES[self.novelty](z, tried, int(rng.integers(2**31)))
        score = novelty.zscore(new)
        if self.explore.beta > 0 and self.novelty != "uniform":
            seen = np.array([trial.p for trial in self.trials])
            score = score + self.explore.beta * novelty.zscore(novelty.predicted_performance(z, tried, seen))
        chosen = int(score.argmax())
        self.phi = candidates[chosen]
        return Decision("jump", reset=self._jump_resets, novelty=float(new[chosen]))

    def _keep_best(self) -> Decision:
        best = self.best.phi
        if np.array_equal(best, self.phi):
            return Decision("hold")
        self.phi = best.copy()
        return Decision("best", reset=True)

    def state_dict(self) -> StateTree:
        return {
            "phi": self.phi.copy(),
            "trials": [{"phi": trial.phi, "p": trial.p, "soft": trial.soft} for trial in self.trials],
            "successes": self.successes,
            "over": self.over,
        }

    def load_state_dict(self, state: StateTree) -> None:
        self.phi = np.array(state["phi"])
        trials: list[dict[str, Any]] = state["trials"]
        self.trials = [Trial(np.array(trial["phi"]), trial["p"], trial["soft"]) for trial in trials]
        self.successes, self.over = state["successes"], state["over"]

"""The search over weights as a state machine that knows no trainer.

``propose()`` gives the weights to train under. ``report(P, gradient)`` says how well the task was then done and what the
hypergradient was; its answer is the next move. Every baseline is the same machine with parts switched off, so comparisons
share one code path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from budwood.api import Array, StateTree
from budwood_reward_shaping import novelty
from budwood_reward_shaping.ascent import Adam, Ascent, Normalised
from budwood_reward_shaping.config import Baseline, ExploreConfig, OuterConfig
from budwood_reward_shaping.probing import Probing
from budwood_reward_shaping.weights import WeightSpace

Kind = Literal["gradient", "jump", "noise", "probe", "hold", "best"]
Generators = Callable[[str], np.random.Generator]
"""Purpose -> a fresh generator, always the same for the same purpose: nothing random needs to be saved."""


@dataclass(frozen=True)
class Parts:
    """What is switched on: gradient steps, when to jump, whether the policy starts afresh after each kind of move, and noise
    in every step."""

    gradient: bool
    jump: Literal["never", "stalled", "always"]
    reset: bool
    noise: bool = False


PARTS: Mapping[Baseline, Parts] = {
    "oracle": Parts(gradient=False, jump="never", reset=False),
    "uniform": Parts(gradient=False, jump="never", reset=False),
    "constant_reset": Parts(gradient=False, jump="never", reset=True),
    "gradient": Parts(gradient=True, jump="never", reset=False),
    "gradient_reset": Parts(gradient=True, jump="never", reset=True),
    "random": Parts(gradient=False, jump="always", reset=True),
    "sweep": Parts(gradient=False, jump="always", reset=True),
}


@dataclass(frozen=True)
class Trial:
    """phi (P,) that was trained under, and the performance reached."""

    phi: Array
    p: float
    soft: float


@dataclass(frozen=True)
class Decision:
    """The next move. ``gradient``: a step along it; ``jump``: to novel weights; ``noise``: a step along the gradient, if any,
    and a bit of noise; ``probe``: on to the next weights of a score estimate; ``hold``: the same weights again; ``best``: the
    search is over and the best weights found are kept.

    ``novelty`` is the score of what a jump or noise chose, ``noise`` how long the noise was, ``grad_norm`` that of the usable
    gradient, ``flat`` whether a score estimate came to nothing, ``record`` whether no policy has done better so far.
    """

    kind: Kind
    reset: bool = False
    novelty: float = 0.0
    noise: float = 0.0
    grad_norm: float = 0.0
    flat: bool = False
    record: bool = False


class OuterLoop:
    """Searches ``space`` from the weights ``initial`` (n,)."""

    def __init__(
        self,
        initial: Array,
        space: WeightSpace,
        outer: OuterConfig,
        explore: ExploreConfig,
        baseline: Baseline | None,
        generators: Generators,
    ) -> None:
        self.space, self.outer, self.explore, self.baseline = space, outer, explore, baseline
        self.novelty = "uniform" if baseline == "random" else explore.novelty
        jump: Literal["never", "stalled"] = "stalled" if explore.variant == "jump" else "never"
        searching = Parts(True, jump, outer.reset_on_gradient, noise=explore.variant == "noise")
        self.parts = PARTS[baseline] if baseline else searching
        self._jump_resets = self.parts.reset if baseline else explore.reset == "fresh"
        self._generators = generators
        self._novelty_target = int(generators("novelty target").integers(2**31))
        self.ascent: Ascent = Adam(outer.lr_state) if space.needs_obs else Normalised(outer.lr)
        self.phi = space.start(initial)
        self.probing: Probing | None = None
        if outer.estimator == "score" and self.parts.gradient:
            self.probing = Probing(space, outer.samples, outer.sigma, generators)
            self.phi = self.probing.begin(self.phi)
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
        """``p`` the task performance under the proposed weights; ``gradient`` (P,) dJ/dphi, None if there was none.

        An estimate by score makes its own and takes none.
        """
        self.trials.append(Trial(self.phi.copy(), p, soft))
        record = self._is_record()
        success = p >= self.explore.p_target
        self.successes = self.successes + 1 if success else 0
        self.over = self.solved or len(self.trials) >= self.outer.steps
        flat = False
        if self.probing is not None:
            self.probing.read(p)
            if not success and not self.over:
                if self.probing.advance():
                    self.phi = self.probing.phi
                    return Decision("probe", reset=self.parts.reset, record=record)
                gradient = self.probing.gradient()
                flat = gradient is None
                self.phi = self.probing.centre
        direction = None if gradient is None else self.usable(gradient)
        norm = 0.0 if direction is None else float(np.linalg.norm(direction))
        decision = self._move(p, success, direction)
        if self.probing is not None and not success and not self.over:
            self.phi = self.probing.begin(self.phi)
        return replace(decision, grad_norm=norm, flat=flat, record=record)

    def usable(self, gradient: Array) -> Array | None:
        """The gradient as it would be followed, None if nothing of it is left."""
        direction = self.space.project(gradient)
        return direction if np.linalg.norm(direction) > 0 else None

    def stalled(self) -> bool:
        """Whether the last trials brought nothing over what was reached before them. Estimates by score count as one."""
        window, history = self.outer.stall_window, [trial.p for trial in self.trials]
        if self.probing is not None:
            window *= self.outer.samples
        return len(history) > window and max(history[-window:]) < max(history[:-window]) + self.outer.stall_delta

    def _is_record(self) -> bool:
        """The best trial so far, or as good as it under the same weights: then its policy has been trained for longer."""
        *before, last = self.trials
        if not before:
            return True
        best = max(before, key=lambda trial: (trial.p, trial.soft))
        reached, now = (best.p, best.soft), (last.p, last.soft)
        return now > reached or (now == reached and np.array_equal(best.phi, last.phi))

    def _move(self, p: float, success: bool, direction: Array | None) -> Decision:
        if self.over and not self.solved:
            return self._keep_best()
        if success:
            return Decision("hold")
        if self._jumps(p, direction):
            return self._jump()
        if self.parts.noise:
            return self._noisy_step(p, direction)
        if direction is None or not self.parts.gradient:
            return Decision("hold", reset=self.parts.reset)
        self.phi = self.space.bound(self.phi + self.ascent.move(direction))
        return Decision("gradient", reset=self.parts.reset)

    def _jumps(self, p: float, direction: Array | None) -> bool:
        if self.parts.jump != "stalled":
            return self.parts.jump == "always"
        if direction is not None and not self.stalled():
            return False
        low, high = self.explore.probability
        probability = min(max(1.0 - p / self.explore.p_target, low), high)
        return bool(self._generators(f"jump or not {len(self.trials)}").random() < probability)

    def _jump(self) -> Decision:
        self.ascent.restart()
        if self.baseline == "sweep":
            self.phi = self.space.sweep(self._sobol())
            return Decision("jump", reset=self._jump_resets)
        rng = self._generators(f"jump {len(self.trials)}")
        candidates = self.space.draw(rng, self.explore.candidates, len(self.phi))  # (M, P)
        self.phi, score = self._most_novel(candidates, rng)
        return Decision("jump", reset=self._jump_resets, novelty=score)

    def _noisy_step(self, p: float, direction: Array | None) -> Decision:
        """phi + lr g / |g| + s e with s = s_0 (1 - P / P_target) and e the most novel of M Gaussian draws."""
        rng = self._generators(f"noise {len(self.trials)}")
        length = self.explore.noise * (1.0 - p / self.explore.p_target)
        moved = self.phi if direction is None else self.phi + self.ascent.move(direction)
        draws = self.space.noise(rng, self.explore.candidates, len(self.phi))  # (M, P)
        self.phi, score = self._most_novel(self.space.bound(moved + length * draws), rng)
        return Decision("noise", reset=self.parts.reset, novelty=score, noise=length)

    def _most_novel(self, candidates: Array, rng: np.random.Generator) -> tuple[Array, float]:
        """Of (M, P) candidates, and its score."""
        tried = self.space.coordinates(np.stack([trial.phi for trial in self.trials]))  # (N, d)
        z = self.space.coordinates(candidates)
        seeds = novelty.Seeds(self._novelty_target, int(rng.integers(2**31)))
        new = novelty.SCORES[self.novelty](z, tried, seeds)
        score = novelty.zscore(new)
        if self.explore.beta > 0 and self.novelty != "uniform":
            seen = np.array([trial.p for trial in self.trials])
            score = score + self.explore.beta * novelty.zscore(novelty.predicted_performance(z, tried, seen))
        chosen = int(score.argmax())
        return candidates[chosen], float(new[chosen])

    def _sobol(self) -> Array:
        """(n,) the next point of a scrambled Sobol sequence in the unit cube."""
        import torch

        n, seed = len(self.propose()), int(self._generators("sweep").integers(2**31))
        sequence = torch.quasirandom.SobolEngine(n, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
        points = sequence.draw(len(self.trials), dtype=torch.float64)
        point: Array = points[-1].numpy()
        return point

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
            "ascent": self.ascent.state_dict(),
            "probing": None if self.probing is None else self.probing.state_dict(),
        }

    def load_state_dict(self, state: StateTree) -> None:
        self.phi = np.array(state["phi"])
        trials: list[dict[str, Any]] = state["trials"]
        self.trials = [Trial(np.array(trial["phi"]), trial["p"], trial["soft"]) for trial in trials]
        self.successes, self.over = state["successes"], state["over"]
        self.ascent.load_state_dict(state["ascent"])
        if self.probing is not None:
            self.probing.load_state_dict(state["probing"])

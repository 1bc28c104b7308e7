"""What happens between the trainer's updates: scales are measured once, and the search over weights is driven."""

from __future__ import annotations

import numpy as np

from budwood.api import Array, BindingError, Rollout, RunCallback, RunControl, StateTree
from budwood_reward_shaping.combination import PLUGIN
from budwood_reward_shaping.criteria import measure
from budwood_reward_shaping.hypergrad import discounted_std, weight_gradient
from budwood_reward_shaping.outer import Decision, Generators, OuterLoop
from budwood_reward_shaping.shaping import EVALUATION_SEED, Shaping
from budwood_reward_shaping.weights import StaticWeights


class Calibration(RunCallback):
    """Sets every ``auto`` scale from the first rollout, which is given its rewards anew, and never again."""

    def __init__(self, shaping: Shaping) -> None:
        self.shaping = shaping
        self.done = False

    def on_rollout_end(self, control: RunControl, rollout: Rollout) -> None:
        if self.done:
            return
        assert rollout.terms is not None
        combination, names = self.shaping.combination, self.shaping.config.names
        terms = rollout.terms[..., combination.columns]
        spread = discounted_std(terms, rollout.episode_starts.astype(np.float64), rollout.gamma)
        measured = np.divide(1.0, spread, out=np.ones_like(spread), where=spread > 0)
        combination.change(scales=np.where(self.shaping.pending, measured, combination.scales))
        self.done = True
        scales = zip(names, combination.scales.tolist(), strict=True)
        control.log({f"{PLUGIN}/scale/{name}": scale for name, scale in scales})

    def on_update_end(self, control: RunControl) -> None:
        if not self.done:
            raise BindingError(
                "scale: auto is measured on the first rollout, and this trainer shows none",
                where=f"plugins.{PLUGIN}.weights.scale",
                do="Give every term a number, or null for no scaling",
            )

    def state_dict(self) -> StateTree:
        return {"done": self.done, "combination": self.shaping.combination.state_dict()}

    def load_state_dict(self, state: StateTree) -> None:
        self.done = state["done"]
        self.shaping.combination.load_state_dict(state["combination"])


class Search(RunCallback):
    """Counts inner iterations, and after each round of them evaluates, decides, and changes the weights.

    The gradient of a round is the mean over its last rollouts. Whatever is random comes from a generator named after the
    outer step, so the state is a handful of arrays and a resumed search continues bit for bit.
    """

    def __init__(self, shaping: Shaping, generators: Generators, seed: int) -> None:
        config = shaping.config
        assert config.searches is not None
        self.shaping, self.outer = shaping, config.searches
        self.names = config.names
        self.seed = seed
        self._generators = generators
        self.iterations = 0
        self.rollouts_seen = False
        self.gradients: list[Array] = []
        self.zero_gradients = 0
        self._rewarded_under = shaping.combination.version

    def on_run_start(self, control: RunControl) -> None:
        config, combination = self.shaping.config, self.shaping.combination
        low, high = config.weights.bounds
        space = StaticWeights(low, high, combination.scale_free)
        self.loop = OuterLoop(combination.weights, space, self.outer, config.explore, config.baseline, self._generators)

    # ---- inner loop --------------------------------------------------------------------------------------------------

    def on_rollout_end(self, control: RunControl, rollout: Rollout) -> None:
        self.rollouts_seen = True
        if self.loop.over:
            return
        self.iterations += 1
        combination = self.shaping.combination
        if combination.version != self._rewarded_under:
            return  # calibrated just now: its advantages are still those of the scales before
        if self.loop.parts.gradient and self.iterations > self.outer.inner_iterations - self.outer.rollouts:
            assert combination.task_column is not None
            gradient = weight_gradient(
                rollout, combination.columns, combination.coefficients, combination.task_column, self.outer.alpha
            )
            if gradient is None:
                self.zero_gradients += 1
            else:
                self.gradients.append(gradient)

    def on_update_end(self, control: RunControl) -> None:
        if not self.rollouts_seen:
            raise BindingError(
                "the search over weights follows the rollouts of an on-policy trainer, and this one shows none",
                where=f"plugins.{PLUGIN}.outer",
                do="Use trainer.algo: ppo, a2c or trpo, or keep the weights fixed with outer: null",
            )
        if not self.loop.over and self.iterations >= self.outer.inner_iterations:
            self._outer_step(control)
        self._rewarded_under = self.shaping.combination.version

    # ---- outer loop --------------------------------------------------------------------------------------------------

    def _outer_step(self, control: RunControl) -> None:
        performance = measure(control, self.shaping.criteria, self.outer.episodes, self.seed + EVALUATION_SEED)
        gradient = np.mean(self.gradients, axis=0) if self.gradients else None
        weights = self.loop.propose()
        decision = self.loop.report(performance.p, gradient, performance.soft)
        control.log(self._metrics(control, performance.metrics(), weights, gradient, decision))
        self.iterations, self.gradients, self.zero_gradients = 0, [], 0
        if decision.kind in ("gradient", "jump", "best"):
            self.shaping.combination.change(weights=self.loop.propose())
        if decision.reset:
            self._reset(control)
        if self.loop.solved:
            control.stop(f"the task was done in {self.outer.consecutive} evaluations in a row")

    def _reset(self, control: RunControl) -> None:
        purpose = f"policy {len(self.loop.trials)}"
        control.reset_policy(int(self._generators(purpose).integers(2**31)))
        assert self.shaping.task is not None
        self.shaping.task.restart()

    def _metrics(
        self,
        control: RunControl,
        performance: dict[str, float],
        weights: Array,
        gradient: Array | None,
        decision: Decision,
    ) -> dict[str, float]:
        direction = None if gradient is None else self.loop.usable(gradient)
        numbers = {
            **performance,
            "best_P": self.loop.best.p,
            **{f"w/{name}": weight for name, weight in zip(self.names, weights.tolist(), strict=True)},
            "grad_norm": 0.0 if direction is None else float(np.linalg.norm(direction)),
            "zero_grad": float(self.zero_gradients),
            "stepped": float(decision.kind == "gradient"),
            "explored": float(decision.kind == "jump"),
            "novelty": decision.novelty,
            "env_steps": float(control.env_steps),
        }
        return {f"{PLUGIN}/{name}": value for name, value in numbers.items()}

    # ---- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> StateTree:
        return {
            "loop": self.loop.state_dict(),
            "combination": self.shaping.combination.state_dict(),
            "iterations": self.iterations,
            "rollouts_seen": self.rollouts_seen,
            "gradients": [gradient.copy() for gradient in self.gradients],
            "zero_gradients": self.zero_gradients,
        }

    def load_state_dict(self, state: StateTree) -> None:
        self.loop.load_state_dict(state["loop"])
        self.shaping.combination.load_state_dict(state["combination"])
        self.iterations, self.rollouts_seen = state["iterations"], state["rollouts_seen"]
        self.gradients = [np.array(gradient) for gradient in state["gradients"]]
        self.zero_gradients = state["zero_gradients"]
        self._rewarded_under = self.shaping.combination.version

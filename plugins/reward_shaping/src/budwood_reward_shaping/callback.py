"""The search over weights, driven between the trainer's updates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from budwood.api import Array, BindingError, Rollout, RunCallback, RunControl, StateTree
from budwood_reward_shaping.combination import PLUGIN
from budwood_reward_shaping.criteria import Performance, measure
from budwood_reward_shaping.hypergrad import reward_adjoint
from budwood_reward_shaping.outer import PARTS, Decision, Generators, OuterLoop
from budwood_reward_shaping.policy_steps import DivergedError, PolicySteps, check_differentiable
from budwood_reward_shaping.retraining import Kept, Retraining
from budwood_reward_shaping.shaping import EVALUATION_SEED, FINAL_SEED, FINAL_SPACING, Shaping, claimed_advantages


class Search(RunCallback):
    """Counts inner iterations, and after each round of them evaluates, decides, and changes the weights.

    The gradient of a round is the mean over its last rollouts. Whatever is random comes from a generator named after the
    outer step, so the state is a handful of arrays and a resumed search continues bit for bit. The policy of the best trial
    is kept, and is the one that is saved and exported when the run ends; after a search that was spent without success, one
    that was trained on under the best weights is measured then, and left if it is as good.
    """

    across_processes = "same"

    def __init__(self, shaping: Shaping, generators: Generators, seed: int) -> None:
        config = shaping.config
        assert config.searches is not None
        self.shaping, self.outer = shaping, config.searches
        self.names = config.names
        self.seed = seed
        self._generators = generators
        self.iterations, self.began = 0, 0
        self.rollouts_seen = False
        self.gradients: list[Array] = []
        self.zero_gradients = self.diverged = 0
        self.kept, self.retraining = Kept(), Retraining(self.outer.final_seeds)
        self._loop: OuterLoop | None = None
        self._rewarded_under = shaping.combination.version
        self._steps = PolicySteps(
            self.outer.alpha,
            self.outer.order if self.outer.estimator == "neumann" else 0,
            self.outer.damping,
            self.outer.unroll if self.outer.estimator == "unrolled" else None,
            self.outer.precond == "adam",
        )

    @property
    def loop(self) -> OuterLoop:
        assert self._loop is not None, "weights of the state begin with the first rollout"
        return self._loop

    def without_rollouts(self) -> BindingError | None:
        baseline, where = self.shaping.config.baseline, f"plugins.{PLUGIN}.outer"
        if self.shaping.config.weights.param == "state":
            return BindingError(
                "param: state takes its normaliser from the first rollout, and this trainer shows none",
                where=f"plugins.{PLUGIN}.weights.param",
                do="Use trainer.algo: ppo, a2c or trpo, or param: static or simplex",
            )
        if self.outer.estimator != "score" and (baseline is None or PARTS[baseline].gradient):
            return BindingError(
                f"estimator {self.outer.estimator} follows the rollouts of an on-policy trainer, and this one shows none",
                where=f"{where}.estimator",
                do="Use estimator: score, a baseline without gradients such as random, trainer.algo: ppo, a2c or trpo, or "
                "keep the weights fixed with outer: null",
            )
        if self.outer.inner_steps is None:
            return BindingError(
                "an inner loop is counted in the rollouts of an on-policy trainer unless inner_steps says otherwise, and "
                "this trainer shows none",
                where=where,
                do="Give outer.inner_steps, the environment steps under each weight vector",
            )
        return None

    def on_run_start(self, control: RunControl) -> None:
        self._control = control
        self.space = self.shaping.space()
        if not self.space.needs_obs:
            self._loop = self._made_loop()
            if self.loop.probing is not None:
                self.shaping.combination.follow(self.space, self.loop.phi)

    def _made_loop(self) -> OuterLoop:
        config, initial = self.shaping.config, self.shaping.combination.weights
        return OuterLoop(initial, self.space, self.outer, config.explore, config.baseline, self._generators)

    # ---- inner loop --------------------------------------------------------------------------------------------------

    def on_rollout_end(self, control: RunControl, rollout: Rollout) -> None:
        if not self.rollouts_seen:
            self.rollouts_seen = True
            self._first_rollout(rollout)
        self.iterations += 1
        if self.loop.over:
            return
        combination = self.shaping.combination
        if combination.version != self._rewarded_under:
            return  # calibrated just now: its advantages are still those of the scales before
        if self.loop.parts.gradient and self.loop.probing is None and self._counts(control, rollout):
            gradient = self._gradient(rollout)
            if gradient is None:
                self.zero_gradients += 1
            else:
                self.gradients.append(gradient)

    def _first_rollout(self, rollout: Rollout) -> None:
        if self.space.needs_obs:
            self.shaping.freeze(rollout, self._generators("probe states"))
            self._loop = self._made_loop()
            self.shaping.combination.follow(self.space, self.loop.phi)
        estimated = self.loop.parts.gradient and self.loop.probing is None
        if estimated and rollout.advantages_by is not None:
            raise claimed_advantages(rollout.advantages_by, self.outer.estimator)
        if estimated:
            check_differentiable(rollout, self._steps)

    def _counts(self, control: RunControl, rollout: Rollout) -> bool:
        """Whether this rollout is among the last ``rollouts`` of the inner loop."""
        if self.outer.inner_steps is None:
            return self.iterations > self.outer.inner_iterations - self.outer.rollouts
        left = self.began + self.outer.inner_steps - control.steps  # with this rollout still to be counted
        return left <= self.outer.rollouts * rollout.rewards.size

    def _gradient(self, rollout: Rollout) -> Array | None:
        combination = self.shaping.combination
        assert combination.task_column is not None
        assert rollout.terms is not None
        try:
            adjoint = reward_adjoint(rollout, combination.task_column, self._steps)
        except DivergedError:
            self.diverged += 1
            return None
        if adjoint is None:
            return None
        terms = rollout.terms[..., combination.columns]
        return self.space.pullback(self.loop.phi, combination.scales, adjoint, terms, rollout.raw_obs)

    def on_update_end(self, control: RunControl) -> None:
        self.kept.moved()
        if self._inner_loop_done(control):
            if self.retraining.active:
                self._retrained(control)
            elif not self.loop.over:
                self._outer_step(control)
        if control.steps >= control.total_steps:
            self._leave_best(control)
        self._rewarded_under = self.shaping.combination.version

    def _inner_loop_done(self, control: RunControl) -> bool:
        if self.outer.inner_steps is None:
            return self.iterations >= self.outer.inner_iterations
        return control.steps >= self.began + self.outer.inner_steps

    # ---- outer loop --------------------------------------------------------------------------------------------------

    def _measure(self, control: RunControl, seed: int = EVALUATION_SEED) -> Performance:
        return measure(control, self.shaping.criteria, self.outer.episodes, self.seed + seed)

    def _outer_step(self, control: RunControl) -> None:
        performance = self._measure(control)
        gradient = np.mean(self.gradients, axis=0) if self.gradients else None
        phi = self.loop.phi
        decision = self.loop.report(performance.p, gradient, performance.soft)
        if decision.record:
            self.kept.keep(control, (performance.p, performance.soft))
        control.log(self._metrics(control, performance.metrics(), phi, decision))
        self._begin_inner_loop(control)
        if self.loop.over and self.outer.final_seeds:
            self._begin_retraining(control)
            return
        if not np.array_equal(phi, self.loop.phi):
            self.shaping.combination.follow(self.space, self.loop.phi)
        if decision.reset:
            self._reset(control, f"policy {len(self.loop.trials)}")
        if self.loop.solved:
            self._stop(control, f"the task was done in {self.outer.consecutive} evaluations in a row")

    def _begin_inner_loop(self, control: RunControl) -> None:
        self.iterations, self.began = 0, control.steps
        self.gradients, self.zero_gradients = [], 0

    def _reset(self, control: RunControl, purpose: str) -> None:
        control.reset_policy(int(self._generators(purpose).integers(2**31)))
        assert self.shaping.task is not None
        self.shaping.task.restart()

    def _stop(self, control: RunControl, reason: str) -> None:
        self._leave_best(control)
        control.stop(reason)

    # ---- after the search --------------------------------------------------------------------------------------------

    def _begin_retraining(self, control: RunControl) -> None:
        self.retraining.started = True
        self.kept.forget()
        self.shaping.combination.follow(self.space, self.loop.best.phi)
        self._reset(control, "final policy 0")

    def _retrained(self, control: RunControl) -> None:
        number = len(self.retraining.results)
        performance = self._measure(control, FINAL_SEED + FINAL_SPACING * number)
        self.retraining.results.append(performance.p)
        if (performance.p, performance.soft) > self.kept.score:
            self.kept.keep(control, (performance.p, performance.soft))
        numbers = self.retraining.metrics(self._generators("final interval"))
        control.log({f"{PLUGIN}/{name}": value for name, value in numbers.items()})
        self._begin_inner_loop(control)
        if self.retraining.active:
            self._reset(control, f"final policy {number + 1}")
        else:
            mean = numbers["final/P"]
            self._stop(
                control, f"{number + 1} policies trained afresh under the best weights reach P = {mean:.2f} on average"
            )

    def _leave_best(self, control: RunControl) -> None:
        trained_on = self.loop.over and not self.loop.solved and not self.retraining.started
        if trained_on and control.steps > self.began and not self.kept.left:
            performance = self._measure(control)
            control.log({f"{PLUGIN}/last_{name}": value for name, value in performance.metrics().items()})
            if (performance.p, performance.soft) >= self.kept.score:
                self.kept.keep(control, (performance.p, performance.soft))
        self.kept.leave(control)

    def on_run_end(self, control: RunControl) -> None:
        if self._loop is None:
            return
        self._leave_best(control)
        for sentence in self._summary():
            control.note(sentence)

    def _summary(self) -> Iterator[str]:
        """What the return does not say: how well the task is done, and whether the search came to its end."""
        if self.loop.trials:
            best, done = self.loop.best, len(self.loop.trials)
            weights = zip(self.names, self.space.weights(best.phi), strict=True)
            under = ", ".join(f"{name} {weight:.3g}" for name, weight in weights)
            yield f"best task performance P = {best.p:.2f} in {done} outer steps, under the weights {under}"
        if self.diverged:
            yield (
                f"in {self.diverged} rollouts the virtual policy steps diverged, and there was no gradient: an alpha below "
                f"{self.outer.alpha:g} would help"
            )
        if not self.loop.over:
            yield (
                f"the search was cut off after {len(self.loop.trials)} of {self.outer.steps} outer steps; resumed with more "
                "steps it goes on"
            )
        elif self.retraining.active:
            yield (
                f"the run was cut off after {len(self.retraining.results)} of {self.outer.final_seeds} final policies; "
                "resumed with more steps it goes on"
            )

    # ---- what is logged and saved ------------------------------------------------------------------------------------

    def _metrics(
        self, control: RunControl, performance: dict[str, float], phi: Array, decision: Decision
    ) -> dict[str, float]:
        spread = self.space.spread(phi)
        numbers = {
            **performance,
            "best_P": self.loop.best.p,
            **self._named("w", self.space.weights(phi)),
            **({} if spread is None else self._named("w_spread", spread)),
            "grad_norm": decision.grad_norm,
            "zero_grad": float(self.zero_gradients + decision.flat),
            "stepped": float(decision.kind in ("gradient", "noise") and decision.grad_norm > 0),
            "explored": float(decision.kind == "jump"),
            "novelty": decision.novelty,
            "noise": decision.noise,
            "env_steps": float(control.env_steps),
        }
        return {f"{PLUGIN}/{name}": value for name, value in numbers.items()}

    def _named(self, prefix: str, values: Array) -> dict[str, float]:
        return {f"{prefix}/{name}": value for name, value in zip(self.names, values.tolist(), strict=True)}

    def state_dict(self) -> StateTree:
        return {
            "combination": self.shaping.combination.state_dict(),
            "loop": None if self._loop is None else self._loop.state_dict(),
            "iterations": self.iterations,
            "began": self.began,
            "rollouts_seen": self.rollouts_seen,
            "gradients": [gradient.copy() for gradient in self.gradients],
            "zero_gradients": self.zero_gradients,
            "diverged": self.diverged,
            "kept": self.kept.state_dict(),
            "retraining": self.retraining.state_dict(),
        }

    def load_state_dict(self, state: StateTree) -> None:
        self.shaping.combination.load_state_dict(state["combination"])
        if state["loop"] is not None:
            self._loop = self._loop or self._made_loop()
            self.loop.load_state_dict(state["loop"])
        self.iterations, self.began = state["iterations"], state["began"]
        self.rollouts_seen = state["rollouts_seen"]
        self.gradients = [np.array(gradient) for gradient in state["gradients"]]
        self.zero_gradients, self.diverged = state["zero_gradients"], state["diverged"]
        self.kept.load_state_dict(state["kept"], self._control)
        self.retraining.load_state_dict(state["retraining"])
        self._rewarded_under = self.shaping.combination.version

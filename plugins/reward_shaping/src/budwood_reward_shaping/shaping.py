"""From a run's configuration to the objects its hooks return, made once and shared between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from budwood.api import (
    Array,
    BindingError,
    Contributions,
    EvalReport,
    Evaluator,
    PluginError,
    RewardTerm,
    Rollout,
    Run,
    RunCallback,
    RunControl,
)
from budwood_reward_shaping.combination import PLUGIN, TASK, WeightedTerms
from budwood_reward_shaping.config import ShapingConfig
from budwood_reward_shaping.criteria import Criterion, TaskReward, measure
from budwood_reward_shaping.terms import KIND, Registry, Term
from budwood_reward_shaping.weights import SimplexWeights, StaticWeights, WeightSpace

EVALUATION_SEED = 1_000_000
"""Added to the run's seed for the environments that performance is measured on, far from those trained on."""
FINAL_SEED, FINAL_SPACING = 2_000_000, 1_000
"""Likewise for policies trained afresh after the search, each on environments of its own."""

ONLY_AT_THE_END = 1 << 62


@dataclass(frozen=True)
class Shaping:
    """``task`` is None without criteria. ``pending`` (n,) marks the scales that the first rollout decides."""

    config: ShapingConfig
    terms: list[Term]
    criteria: list[Criterion]
    task: TaskReward | None
    combination: WeightedTerms
    pending: Array

    def space(self) -> WeightSpace:
        """Where weights are searched; asked once the combination knows all columns."""
        low, high = self.config.weights.bounds
        if self.config.weights.param == "static":
            return StaticWeights(low, high, self.combination.scale_free)
        if self.config.weights.param == "simplex":
            return SimplexWeights(low, high)
        from budwood_reward_shaping.state_weights import StateWeightedTerms

        assert isinstance(self.combination, StateWeightedTerms)
        return self.combination.space

    def freeze(self, rollout: Rollout, rng: np.random.Generator) -> None:
        """Weights of the state take their normaliser and probe states from the first rollout."""
        from budwood_reward_shaping.state_weights import StateWeightedTerms, merged

        assert isinstance(self.combination, StateWeightedTerms)
        if rollout.raw_obs is None:
            raise BindingError(
                "param: state needs observations before normalisation, and this trainer's rollouts do not tell them",
                where=f"plugins.{PLUGIN}.weights.param",
                do="Use param: static or simplex",
            )
        self.combination.space.freeze(merged(rollout.raw_obs), rng)

    def reward_terms(self) -> list[RewardTerm]:
        made = [term.contribution() for term in self.terms]
        heuristics = [term for term in made if term is not None]
        if self.task is None:
            return heuristics
        return [RewardTerm(TASK, fn=self.task, weight=self.config.weights.w_task, state=self.task), *heuristics]


def assemble(run: Run) -> Shaping:
    config: ShapingConfig = run.section
    registry = Registry(config.pack or run.env_id, run.components(KIND))
    terms = [registry.term(wanted) for wanted in config.terms]
    named = {term.name: term for term in terms}
    wanted_criteria = [registry.criterion(criterion) for criterion in config.criteria]
    criteria = [Criterion(c.name, registry.source(c.source, named), c.stat, c.op, c.threshold) for c in wanted_criteria]
    names, given = config.names, config.weights.scale
    wanted_scales = [given[name] if isinstance(given, dict) else given for name in names]
    scales = np.array([scale if isinstance(scale, float | int) else 1.0 for scale in wanted_scales])
    initial = config.weights.initial or dict.fromkeys(names, 1.0)
    combination = _combination(config, terms, np.array([initial[name] for name in names]), scales)
    task = TaskReward(criteria, config.task_mode) if criteria else None
    return Shaping(config, terms, criteria, task, combination, np.array([scale == "auto" for scale in wanted_scales]))


def _combination(config: ShapingConfig, terms: list[Term], weights: Array, scales: Array) -> WeightedTerms:
    param, w_task = config.weights.param, config.weights.w_task
    if param == "static":
        return WeightedTerms(terms, weights, scales, w_task)
    weights = len(weights) * weights / weights.sum()
    if param == "simplex":
        return WeightedTerms(terms, weights, scales, w_task)
    from budwood_reward_shaping.state_weights import StateWeightedTerms, StateWeights

    low, high = config.weights.bounds
    return StateWeightedTerms(terms, weights, scales, w_task, StateWeights(low, high, len(terms)))


def callbacks(shaping: Shaping, run: Run) -> list[RunCallback]:
    from budwood_reward_shaping.calibration import Calibration
    from budwood_reward_shaping.callback import Search

    made: list[RunCallback] = []
    if shaping.pending.any():
        made.append(Calibration(shaping))
    if shaping.config.searches is not None:
        made.append(Search(shaping, run.rng, run.seed))
    return made


def claimed_advantages(by: str, estimator: str) -> PluginError:
    return PluginError(
        f"estimator {estimator} of {PLUGIN} differentiates GAE, and the advantages of this run are made by {by}",
        where=f"plugins.{PLUGIN}.outer.estimator",
        do="Use estimator: score, a baseline without gradients such as random, or leave one of the two plugins out",
    )


def check_advantages(config: ShapingConfig, contributions: Contributions) -> None:
    """Refuse estimators that differentiate GAE where another plugin makes the advantages."""
    outer, claimed = config.searches, contributions.advantage
    gradient = config.baseline in (None, "gradient", "gradient_reset")
    if outer is not None and gradient and outer.estimator != "score" and claimed is not None:
        raise claimed_advantages(f"{claimed.plugin} ({claimed.who})", outer.estimator)


def evaluators(shaping: Shaping, run: Run) -> list[Evaluator]:
    """Under fixed weights, the performance is measured when the run evaluates; the search measures it by itself."""
    every, episodes = (run.config.get("evaluation", {}).get(key) for key in ("every", "episodes"))
    if shaping.config.searches is not None or not shaping.criteria or episodes == 0:
        return []

    def performance(control: RunControl) -> EvalReport:
        return EvalReport(measure(control, shaping.criteria, episodes or 20, run.seed + EVALUATION_SEED).metrics())

    return [Evaluator("criteria", every or ONLY_AT_THE_END, performance)]

"""From a run's configuration to the objects its hooks return, made once and shared between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from budwood.api import Array, EvalReport, Evaluator, RewardTerm, Run, RunCallback, RunControl
from budwood_reward_shaping.combination import PLUGIN, TASK, WeightedTerms
from budwood_reward_shaping.config import ShapingConfig
from budwood_reward_shaping.criteria import Criterion, TaskReward, measure
from budwood_reward_shaping.terms import KIND, Registry, Term

EVALUATION_SEED = 1_000_000
"""Added to the run's seed for the environments that performance is measured on, far from those trained on."""

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
    criteria = [Criterion(c.name, registry.source(c.source, named), c.stat, c.op, c.threshold) for c in config.criteria]
    names, given = config.names, config.weights.scale
    wanted_scales = [given[name] if isinstance(given, dict) else given for name in names]
    scales = np.array([scale if isinstance(scale, float | int) else 1.0 for scale in wanted_scales])
    initial = config.weights.initial or dict.fromkeys(names, 1.0)
    combination = WeightedTerms(terms, np.array([initial[name] for name in names]), scales, config.weights.w_task)
    task = TaskReward(criteria, config.task_mode) if criteria else None
    return Shaping(config, terms, criteria, task, combination, np.array([scale == "auto" for scale in wanted_scales]))


def callbacks(shaping: Shaping, run: Run) -> list[RunCallback]:
    from budwood_reward_shaping.callback import Calibration, Search

    made: list[RunCallback] = []
    if shaping.pending.any():
        made.append(Calibration(shaping))
    if shaping.config.searches is not None:
        made.append(Search(shaping, run.rng, run.seed))
    return made


def evaluators(shaping: Shaping, run: Run) -> list[Evaluator]:
    """Under fixed weights, the performance is measured when the run evaluates; the search measures it by itself."""
    every, episodes = (run.config.get("evaluation", {}).get(key) for key in ("every", "episodes"))
    if shaping.config.searches is not None or not shaping.criteria or episodes == 0:
        return []

    def performance(control: RunControl) -> EvalReport:
        return EvalReport(measure(control, shaping.criteria, episodes or 20, run.seed + EVALUATION_SEED).metrics())

    return [Evaluator("criteria", every or ONLY_AT_THE_END, performance)]


__all__ = ["EVALUATION_SEED", "PLUGIN", "Shaping", "assemble", "callbacks", "evaluators"]

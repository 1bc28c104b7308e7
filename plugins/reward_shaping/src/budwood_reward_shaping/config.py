"""The section ``plugins.reward_shaping`` of a run."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from budwood.api import Config

Scale = float | Literal["auto"] | None
Baseline = Literal["oracle", "uniform", "constant_reset", "gradient", "gradient_reset", "random", "sweep"]


class InlineTerm(Config):
    """A term written in the configuration: ``factor`` times an info key of the environment."""

    name: str = Field(min_length=1, description="what the term is called in this run")
    info: str = Field(description="info key of the environment")
    factor: float = Field(default=1.0, description="what it is multiplied by; -1 makes a cost a penalty")
    sign: Literal["+", "-"] | None = Field(default=None, description="sign that its values must have")


class CriterionConfig(Config):
    """``stat`` over an episode of ``source`` must be ``op`` ``threshold``.

    ``source`` is a signal or term of the environment's pack, one of ``action_sq``, ``native`` and ``step``, or an info key.
    """

    name: str = Field(min_length=1, description="what it is called in metrics and report")
    source: str = Field(description="a signal, a term, or an info key")
    stat: Literal["final", "sum", "mean", "max", "min"] = Field(description="statistic over the steps of an episode")
    op: Literal[">=", "<="] = Field(description="how it is compared")
    threshold: float = Field(description="with what it is compared")


class WeightsConfig(Config):
    """Positive weights of the terms, and ``w_task``, the weight of the task's own sparse reward, which is not searched.

    ``static``: w = exp(phi), each within ``bounds``. ``simplex``: w = n softmax(phi) over the n terms, so that they sum to n
    and ``bounds`` hold for exp(phi), which limits the ratio of any two. ``state``: w(s) = n softmax(MLP(s)), likewise.

    ``scale`` multiplies a term before its weight: a number, null for 1, or ``auto`` for one over the standard deviation of
    the term's discounted return in the first rollout, frozen from then on. A mapping gives each term its own.
    """

    param: Literal["static", "simplex", "state"] = Field(
        default="static",
        description="one number a term, numbers that sum to how many there are, or a network of the state",
    )
    w_task: float = Field(default=1.0, ge=0, description="weight of the task's own reward")
    bounds: list[float] = Field(default=[0.1, 10.0], min_length=2, max_length=2, description="range of every weight")
    scale: Scale | dict[str, Scale] = Field(default="auto", description="factor before the weight")
    initial: dict[str, float] | None = Field(default=None, description="weight of every term at the start; null: all 1")

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.bounds
        if not 0 < low < high:
            raise ValueError("bounds: needs 0 < lowest < highest")
        outside = [name for name, weight in (self.initial or {}).items() if not low <= weight <= high]
        if outside:
            raise ValueError(f"initial: {', '.join(outside)} lies outside the bounds {low:g} to {high:g}")
        scales = self.scale.values() if isinstance(self.scale, dict) else [self.scale]
        if any(isinstance(scale, float | int) and scale <= 0 for scale in scales):
            raise ValueError("scale: a number must be positive; penalties carry their sign in the term")
        return self


class OuterConfig(Config):
    """The loop over weights: ``inner_iterations`` updates of the trainer for each of ``steps`` evaluations.

    Estimators of the hypergradient: ``one_step`` through one policy step; ``neumann`` through ``order`` + 1 of them with the
    curvature where they start, less ``damping``; ``unrolled`` through ``unroll`` full-batch steps by automatic
    differentiation, whose memory grows with them: for tests; ``score`` from the performance alone of ``samples`` inner loops
    under weights ``sigma`` away on both sides, for any trainer. The first three need the rollouts of an on-policy trainer.
    """

    steps: int = Field(default=30, ge=0, description="how many weight vectors are evaluated; 0: weights stay fixed")
    inner_iterations: int = Field(default=120, ge=1, description="updates of the trainer under each weight vector")
    inner_steps: int | None = Field(
        default=None,
        ge=1,
        description="environment steps under each weight vector instead; off-policy trainers need it",
    )
    estimator: Literal["one_step", "neumann", "unrolled", "score"] = Field(
        default="one_step",
        description="of the hypergradient: through one policy step, several, or from performance alone",
    )
    order: int = Field(default=5, ge=0, description="of the Neumann series; 0 is one_step")
    damping: float = Field(
        default=1.0, ge=0, description="taken from the preconditioned curvature in the Neumann series"
    )
    unroll: int = Field(default=3, ge=1, description="policy steps of estimator unrolled, which is for tests")
    samples: int = Field(default=4, ge=2, multiple_of=2, description="inner loops of one estimate by score")
    sigma: float = Field(default=0.3, gt=0, description="how far from the centre score tries, in log-weights")
    precond: Literal["none", "adam"] = Field(
        default="none", description="of the virtual policy step: none, or Adam's second moment as it is, held constant"
    )
    lr: float = Field(default=0.35, gt=0, description="length of a gradient step in log-weights")
    lr_state: float = Field(default=0.01, gt=0, description="learning rate of Adam on the network of param: state")
    alpha: float = Field(
        default=0.05,
        gt=0,
        description="length of a virtual policy step; unless given, 0.0003 with precond: adam, and 0.00003 with neumann too",
    )
    rollouts: int = Field(default=8, ge=1, description="how many last rollouts the gradient is averaged over")
    episodes: int = Field(default=20, ge=1, description="evaluation episodes")
    consecutive: int = Field(default=2, ge=1, description="successful evaluations in a row that end the search")
    stall_window: int = Field(default=3, ge=1, description="evaluations without improvement that count as a stall")
    stall_delta: float = Field(default=0.02, ge=0, description="what counts as an improvement of the performance")
    reset_on_gradient: bool = Field(default=True, description="whether the policy starts afresh after a gradient step")
    final_seeds: int = Field(
        default=0,
        ge=0,
        description="policies trained afresh under the best weights after the search, and measured anew",
    )

    @model_validator(mode="before")
    @classmethod
    def _adam_takes_small_steps(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("precond") != "adam":
            return data
        return {"alpha": 3e-5 if data.get("estimator") == "neumann" else 3e-4, **data}


class ExploreConfig(Config):
    """Novel weights: ``jump`` to them when the search stalls, or ``noise`` towards them in every step, without jumps.

    The noise is ``noise`` (1 - P / p_target) times the most novel of ``candidates`` Gaussian draws.
    """

    variant: Literal["jump", "noise"] = Field(
        default="jump",
        description="to the most novel of random candidates when stalled, or a little towards one always",
    )
    noise: float = Field(default=0.5, gt=0, description="length scale of variant noise where P is 0, in log-weights")
    novelty: Literal["rnd", "maxmin", "uniform"] = Field(
        default="rnd", description="prediction error of a random network, distance to the nearest tried, or none"
    )
    candidates: int = Field(default=64, ge=1, description="how many random weights novelty chooses from")
    p_target: float = Field(default=0.9, gt=0, le=1, description="task performance that counts as success")
    probability: list[float] = Field(
        default=[0.2, 1.0], min_length=2, max_length=2, description="of a jump when stalled"
    )
    beta: float = Field(default=0.0, ge=0, description="weight of the performance seen nearby beside novelty")
    reset: Literal["fresh", "none"] = Field(default="fresh", description="the policy after a jump")

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.probability
        if not 0 <= low <= high <= 1:
            raise ValueError("probability: needs 0 <= lowest <= highest <= 1")
        if self.beta > 0 and self.novelty == "uniform":
            raise ValueError("beta: is weighed against novelty, and novelty: uniform has none; use rnd or maxmin")
        return self


class ShapingConfig(Config):
    """Heuristic terms, the criteria that say whether the task is done, and the search over the terms' weights."""

    terms: list[str | InlineTerm] = Field(min_length=1, description="names from the environment's pack, or info keys")
    pack: str | None = Field(default=None, description="environment id whose terms are used; default: the run's own")
    criteria: list[str | CriterionConfig] = Field(
        default_factory=list, description="what an episode must meet: names from the environment's pack, or written out"
    )
    task_mode: Literal["all", "fraction"] = Field(
        default="all", description="task reward of an episode: all criteria met, or the part met"
    )
    weights: WeightsConfig = Field(default=WeightsConfig(), description="of the terms")
    outer: OuterConfig | None = Field(default=OuterConfig(), description="null: the weights stay fixed")
    explore: ExploreConfig = Field(default=ExploreConfig(), description="jumps when the search stalls")
    baseline: Baseline | None = Field(default=None, description="the same loop with parts switched off, for comparison")

    @field_validator("terms", mode="before")
    @classmethod
    def _task_goes_without_saying(cls, terms: Any) -> Any:
        """``task`` may be listed first; it follows from the criteria either way."""
        return terms[1:] if isinstance(terms, list) and terms[:1] == ["task"] else terms

    @property
    def names(self) -> list[str]:
        return [term if isinstance(term, str) else term.name for term in self.terms]

    @property
    def searches(self) -> OuterConfig | None:
        """The outer loop, None if the weights stay fixed."""
        return self.outer if self.outer is not None and self.outer.steps > 0 else None

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = [*self._name_problems(), *self._search_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _name_problems(self) -> list[str]:
        names, problems = self.names, []
        if "task" in names:
            problems.append(
                "terms: 'task' follows from the criteria and may only stand first; its weight is weights.w_task"
            )
        problems += [f"terms: {name!r} is listed twice" for name in sorted({n for n in names if names.count(n) > 1})]
        criteria = [criterion if isinstance(criterion, str) else criterion.name for criterion in self.criteria]
        problems += [f"criteria: {n!r} is used twice" for n in sorted({n for n in criteria if criteria.count(n) > 1})]
        scales = self.weights.scale if isinstance(self.weights.scale, dict) else {}
        for key, given in (("initial", self.weights.initial), ("scale", scales)):
            if given and set(given) != set(names):
                problems.append(f"weights.{key}: must name every term and no other: {', '.join(names)}")
        return problems

    def _search_problems(self) -> list[str]:
        if self.searches is None:
            fixed = ["baseline: needs the outer loop"] if self.baseline else []
            if self.weights.param == "state":
                fixed.append("weights.param: state is what a search finds; fixed weights are static")
            return fixed
        problems = []
        if self.weights.param == "state" and self.weights.initial is not None:
            logs = {name: math.log(weight) for name, weight in self.weights.initial.items()}
            low, high = map(math.log, self.weights.bounds)
            middle = sum(logs.values()) / len(logs)
            outside = [name for name, value in logs.items() if not low - 1e-9 <= value - middle <= high + 1e-9]
            if outside:
                problems.append(
                    f"weights.initial: over the geometric mean of all, {', '.join(outside)} lies outside the bounds, within "
                    "which param: state keeps every weight"
                )
        if len(self.terms) == 1 and self.weights.param != "static":
            problems.append(f"terms: one term has weight 1 whatever a search over param: {self.weights.param} does")
        if not self.criteria:
            problems.append(
                "criteria: the search needs at least one to know success; or write outer: null for fixed weights"
            )
        if len(self.terms) == 1 and self.weights.w_task == 0:
            problems.append("terms: one term alone has nothing to be weighed against when w_task is 0")
        if self.baseline == "oracle" and self.weights.initial is None:
            problems.append("baseline: oracle needs weights.initial")
        if self.baseline in ("uniform", "constant_reset") and self.weights.initial is not None:
            problems.append(f"baseline: {self.baseline} means equal weights; remove weights.initial")
        return problems

"""All hooks of a run called once, what they returned checked against the trainer, every misfit found in one go."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from budwood.api import (
    BindingError,
    BudwoodError,
    Capabilities,
    CompletionReward,
    Contributed,
    Contributions,
    Evaluator,
    LossTerm,
    Objective,
    PluginError,
    RewardCombination,
    RewardTerm,
    Run,
    RunCallback,
    Seam,
)
from budwood.plugins import Activation, Active, PerPlugin

ROLES = ("train", "eval")

KINDS = {
    "build_env": "environment",
    "build_dataset": "dataset",
    "reward_terms": "reward term",
    "completion_rewards": "completion reward",
    "reward_combination": "reward combination",
    "build_model": "model",
    "build_policy": "policy",
    "rollout": "rollout",
    "decoder": "decoder",
    "advantage": "advantage",
    "completion_advantage": "completion advantage",
    "objective": "objective",
    "loss_terms": "loss term",
    "callbacks": "callback",
    "evaluators": "evaluator",
}
"""Kind -> word for one of it, in the order of binding: from the environment outwards to what watches the run."""

NAMED = ("reward_terms", "completion_rewards", "objective", "loss_terms", "evaluators")
LOSSES = ("objective", "loss_terms")


@dataclass(frozen=True)
class Binding:
    """One line of ``budwood explain``: contribution ``name`` of ``plugin`` is bound at ``seam``."""

    order: int
    plugin: str
    who: str
    kind: str
    name: str
    seam: Seam

    @property
    def place(self) -> str:
        return self.seam.place

    @property
    def grade(self) -> str:
        return self.seam.grade


@dataclass(frozen=True)
class Layered:
    """A callable that several plugins made together; ``layers`` are their parts, innermost first."""

    call: Callable[..., Any]
    layers: tuple[Contributed[str], ...]

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


class _Findings:
    """Problems so far; everything is looked at before anything is raised."""

    def __init__(self) -> None:
        self.errors: list[BudwoodError] = []

    def attempt(self, call: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return call()
        except BudwoodError as error:
            self.errors.append(error)
            return otherwise

    def plugin(self, item: Contributed[Any], what: str, do: str = "Report this to its author") -> None:
        self.errors.append(PluginError(what, where=f"plugins.{item.plugin}", who=item.who, do=do))

    def binding(self, item: Contributed[Any], what: str, do: str) -> None:
        self.errors.append(BindingError(what, where=f"plugins.{item.plugin}", who=item.who, do=do))

    def close(self) -> None:
        distinct = {str(error): error for error in self.errors}
        if len(distinct) == 1:
            raise self.errors[0]
        if distinct:
            kind = BindingError if all(isinstance(error, BindingError) for error in self.errors) else PluginError
            raise kind(f"{len(distinct)} contributions do not fit", problems=tuple(distinct)) from self.errors[0]


def contributions(
    activation: Activation, run_for: Callable[[Active], Run], capabilities: Capabilities
) -> Contributions:
    """Ask every plugin, in YAML order, and check types, names and capabilities.

    Raises ``PluginError`` (a hook failed, returned something else, or two plugins claim one seam) or ``BindingError``
    (this trainer cannot bind it); with several findings one error lists them all.
    """
    findings = _Findings()
    run = PerPlugin(run_for)

    def collect(hook: str, expected: type[Any]) -> list[Contributed[Any]]:
        found = findings.attempt(lambda: activation.collect(hook, run=run), [])
        return [
            item for item in found if _is(item, hook, expected.__name__, isinstance(item.value, expected), findings)
        ]

    def claim(hook: str, expected: str, fits: Callable[[Any], bool]) -> Contributed[Any] | None:
        item = findings.attempt(lambda: activation.claim(hook, run=run), None)
        return item if item is not None and _is(item, hook, expected, fits(item.value), findings) else None

    made = Contributions(
        reward_terms=collect("reward_terms", RewardTerm),
        completion_rewards=collect("completion_rewards", CompletionReward),
        reward_combination=claim(
            "reward_combination", "RewardCombination", lambda value: isinstance(value, RewardCombination)
        ),
        loss_terms=collect("loss_terms", LossTerm),
        objective=claim("objective", "Objective", lambda value: isinstance(value, Objective)),
        advantage=claim("advantage", "callable", callable),
        completion_advantage=claim("completion_advantage", "callable", callable),
        rollout=claim("rollout", "callable", callable),
        decoder=claim("decoder", "callable", callable),
        policy=_policy(activation, run, claim("build_policy", "callable", callable), findings),
        callbacks=collect("callbacks", RunCallback),
        evaluators=collect("evaluators", Evaluator),
        wrap_env=_environment(activation, run, findings),
        wrap_dataset=_when_built(activation, run, "build_dataset", "role"),
        wrap_model=_when_built(activation, run, "build_model"),
    )
    _check(made, capabilities, findings)
    findings.close()
    return made


def bindings(made: Contributions, capabilities: Capabilities) -> list[Binding]:
    """Every contribution with its seam, in the order of binding; ``build_env`` and ``build_policy`` innermost first."""
    return [
        Binding(order, item.plugin, item.who, kind, name, capabilities.seams[kind])
        for order, (kind, name, item) in enumerate(_listed(made), start=1)
    ]


def _is(item: Contributed[Any], hook: str, expected: str, fits: bool, findings: _Findings) -> bool:
    if not fits:
        findings.plugin(item, f"its hook {hook} returned {_described(item.value)}, expected {expected}")
    return fits


def _described(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a value of type {type(value).__name__}"


def _policy(
    activation: Activation, run: PerPlugin, base: Contributed[Any] | None, findings: _Findings
) -> Contributed[Any] | None:
    """The policy factory with its wrappers; a wrapper with nothing to wrap is an error."""
    wrappers = [Contributed("wrapper", active.name, active.who) for active in activation.wrappers("build_policy")]
    if base is None:
        for wrapper in wrappers:
            findings.plugin(wrapper, "it wraps build_policy, but no plugin of this run builds a policy", "Add one")
        return None
    if not wrappers:
        return base
    wrapped = findings.attempt(lambda: activation.wrap("build_policy", base.value, run=run), base.value)
    outermost = Contributed(wrapped, wrappers[0].plugin, wrappers[0].who)
    if not _is(outermost, "build_policy", "callable", callable(wrapped), findings):
        return None
    layers = (Contributed(_name(base.value), base.plugin, base.who), *reversed(wrappers))
    return Contributed(Layered(wrapped, layers), base.plugin, base.who)


def _environment(activation: Activation, run: PerPlugin, findings: _Findings) -> Layered | None:
    """(environment factory, role) -> environment factory: the one plugin's own, if any, inside every wrapper."""
    bases: dict[str, Contributed[Any]] = {}
    for role in ROLES:
        base = findings.attempt(lambda role=role: activation.claim("build_env", run=run, role=role), None)  # type: ignore[misc]
        if base is not None and _is(base, "build_env", "callable", callable(base.value), findings):
            bases[role] = base
    wrappers = [Contributed("wrapper", active.name, active.who) for active in activation.wrappers("build_env")]
    if not bases and not wrappers:
        return None

    def wrap(factory: Callable[[], Any], role: str) -> Any:
        base = bases[role].value if role in bases else factory
        made = activation.wrap("build_env", base, run=run, role=role)
        if not callable(made):
            who = wrappers[0]
            raise PluginError(
                f"build_env for {role} gave {_described(made)} once wrapped, expected a callable that makes one environment",
                where=f"plugins.{who.plugin}",
                who=who.who,
                do="Return a factory, not an environment",
            )
        return made

    builders = {base.plugin: base for base in bases.values()}
    roles = {name: ", ".join(role for role, base in bases.items() if base.plugin == name) for name in builders}
    layers = [Contributed(f"factory ({roles[name]})", name, base.who) for name, base in builders.items()]
    return Layered(wrap, (*layers, *reversed(wrappers)))


def _when_built(activation: Activation, run: PerPlugin, hook: str, *names: str) -> Layered | None:
    """(what is there or None, the hook's arguments) -> what is to be used. Called only then: it may take long to make."""
    wrappers = activation.wrappers(hook)
    builders = [a for a in activation.plugins if activation.implements(hook, a) and a not in wrappers]
    if not builders and not wrappers:
        return None

    def make(given: Any, *values: Any) -> Any:
        arguments = {"run": run, **dict(zip(names, values, strict=True))}
        base = activation.claim(hook, **arguments)
        value = given if base is None else base.value
        return None if value is None else activation.wrap(hook, value, **arguments)

    layers = [Contributed(KINDS[hook], active.name, active.who) for active in builders]
    layers += [Contributed("wrapper", active.name, active.who) for active in reversed(wrappers)]
    return Layered(make, tuple(layers))


def _listed(made: Contributions) -> list[tuple[str, str, Contributed[Any]]]:
    """(kind, name, contribution) of everything, in the order of binding."""
    policy = made.policy
    inner = policy.value.layers if policy is not None and isinstance(policy.value, Layered) else None
    by_kind: Mapping[str, Sequence[tuple[str, Contributed[Any]]]] = {
        "build_env": _layers(made.wrap_env),
        "build_dataset": _layers(made.wrap_dataset),
        "reward_terms": _keyed(made.reward_terms),
        "completion_rewards": _keyed(made.completion_rewards),
        "reward_combination": _single(made.reward_combination),
        "build_model": _layers(made.wrap_model),
        "rollout": _single(made.rollout),
        "decoder": _single(made.decoder),
        "build_policy": _single(policy) if inner is None else [(layer.value, layer) for layer in inner],
        "advantage": _single(made.advantage),
        "completion_advantage": _single(made.completion_advantage),
        "objective": _keyed([made.objective] if made.objective else []),
        "loss_terms": _keyed(made.loss_terms),
        "callbacks": [(_name(item.value), item) for item in made.callbacks],
        "evaluators": _keyed(made.evaluators),
    }
    return [(kind, name, item) for kind in KINDS for name, item in by_kind[kind]]


def _layers(made: Callable[..., Any] | None) -> list[tuple[str, Contributed[Any]]]:
    return [(layer.value, layer) for layer in made.layers] if isinstance(made, Layered) else []


def _keyed(items: Sequence[Contributed[Any]]) -> list[tuple[str, Contributed[Any]]]:
    return [(f"{item.plugin}.{item.value.name}", item) for item in items]


def _single(item: Contributed[Any] | None) -> list[tuple[str, Contributed[Any]]]:
    return [] if item is None else [(_name(item.value), item)]


def _name(value: Any) -> str:
    return getattr(value, "__name__", None) or type(value).__name__


def _check(made: Contributions, capabilities: Capabilities, findings: _Findings) -> None:
    """Names are usable and unique, the trainer has the seam, and offers what losses need."""
    seen: set[tuple[str, str]] = set()
    refused: dict[tuple[str, str], tuple[Contributed[Any], list[str]]] = {}
    for kind, name, item in _listed(made):
        if kind in NAMED:
            own = item.value.name
            if not (isinstance(own, str) and re.fullmatch(r"[\w./ :-]+", own, re.ASCII)):
                findings.plugin(
                    item, f"{own!r} is no name for a {KINDS[kind]}; use letters, digits and _ - . / : space"
                )
            elif (kind, name) in seen:
                findings.plugin(item, f"the {KINDS[kind]} {name} is contributed twice; names must be unique")
            seen.add((kind, name))
        if kind not in capabilities.seams:
            refused.setdefault((kind, item.plugin), (item, []))[1].append(name)
        elif kind in LOSSES and item.value.needs - capabilities.loss_inputs:
            missing = ", ".join(f"`{need}`" for need in sorted(item.value.needs - capabilities.loss_inputs))
            findings.binding(
                item,
                f"{KINDS[kind]} {name} needs {missing}; trainer {capabilities.trainer} offers "
                f"{', '.join(sorted(capabilities.loss_inputs)) or 'nothing'}",
                "Choose a trainer that offers it, or switch this contribution off",
            )
    for item in () if capabilities.rollouts else made.callbacks:
        if (error := item.value.without_rollouts()) is not None:
            error.who = error.who or item.who
            findings.errors.append(error)
    for (kind, _), (item, names) in refused.items():
        reason = capabilities.refused.get(kind, "it has no seam for it")
        findings.binding(
            item,
            f"trainer {capabilities.trainer} cannot bind {KINDS[kind]}{'s' * (len(names) > 1)} {', '.join(names)}: {reason}",
            "Choose another trainer, or switch this contribution off",
        )

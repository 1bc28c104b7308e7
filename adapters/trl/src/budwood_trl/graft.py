"""Contributions on a trainer class or trainer of the user's own script, which otherwise stays as it is.

A grafted class is a subclass under the same name: rewards, datasets, model and rollout are bound to the arguments of its
constructor, callbacks when ``train`` begins. A trainer that is already built gets callbacks and evaluators.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from inspect import Parameter
from typing import Any

from transformers import Trainer as Loop

from budwood.api import BindingError, Capabilities, Contributions, Graft, TermColumn, TrainerEvents
from budwood_trl import families
from budwood_trl.bridge import StopTraining
from budwood_trl.building import extended, one_process
from budwood_trl.completions import knowingly, rollout_func
from budwood_trl.families import Family
from budwood_trl.rewards import Columns, batch_width, columns_of, untouched
from budwood_trl.trainer import TRLTrainer, may_reset, measured

GRAFTABLE = frozenset(("callbacks", "evaluators"))
"""What needs nothing of a constructor."""


def graft_capabilities(target: Any) -> Capabilities | None:
    """What a class or a built trainer can bind; None if it is not one of TRL."""
    cls = target if inspect.isclass(target) else type(target)
    family = families.of_class(cls)
    if family is None:
        return None
    known = families.capabilities(family)
    return Capabilities(cls.__name__, known.seams, known.refused, known.loss_inputs, GRAFTABLE)


def build(graft: Graft, target: Any) -> Any:
    """The grafted subclass of a class, or the grafted trainer itself."""
    cls: Any = target if inspect.isclass(target) else type(target)
    if issubclass(cls, Grafted):
        raise BindingError("it is grafted already", do="Give all plugins in one call of graft")
    one_process("graft", "Start the script with python alone")
    contributions = graft.contributions()
    family = families.of_class(cls)
    assert family is not None
    namespace = {"_graft": graft, "_family": family}
    if cls is not target:
        target.__class__ = _subclass(cls, namespace)
        target._contributions, target._columns = contributions, None
        return target
    return _subclass(extended(cls, contributions), namespace)


def _subclass(cls: type[Any], namespace: Mapping[str, Any]) -> type[Any]:
    about = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (Grafted, cls), {**about, **namespace})


class Grafted:
    """In front of a trainer of TRL whose plugins are activated anew for each object."""

    _graft: Graft
    _family: Family
    _contributions: Contributions
    _columns: Columns | None
    _events: TrainerEvents | None = None
    """While it trains."""
    _evaluates = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        contributions = self._contributions = self._graft.contributions()
        for name, kind in (("_loss_terms", "loss_terms"), ("_advantage", "completion_advantage")):
            if getattr(contributions, kind):
                setattr(self, name, getattr(contributions, kind))
        given = _arguments(super().__init__, type(self), args, kwargs)
        self._columns = _bind(given, contributions, self._family)
        with knowingly():
            super().__init__(**given)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL's, with the plugins' callbacks; what stops it before its first step gives None."""
        trainer = TRLTrainer(self, self._columns, total_steps=_steps(self), may_reset=may_reset(self._contributions))
        events = self._graft.events(trainer, self._contributions, self._tell)
        bridge = trainer.attach(events, tells=False)
        self._events = events
        try:
            with suppress(StopTraining):
                outcome = super().train(*args, **kwargs)  # type: ignore[misc]
                events.finish()
                return outcome
        finally:
            self._events = None
            self.remove_callback(bridge)  # type: ignore[attr-defined]

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL's. What rewards and terms remember is afterwards as it was; amid training callbacks hear the numbers."""
        whole = not self._evaluates  # several sets of rows are each evaluated by a call of its own inside this one
        self._evaluates = True
        try:
            with untouched(() if self._columns is None else self._columns.contributed):
                found = super().evaluate(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._evaluates = not whole
        if whole and self._events is not None:
            self._events.measured(measured(found), self.state.global_step)  # type: ignore[attr-defined]
        return found

    def _tell(self, metrics: Mapping[str, float], steps: int) -> None:
        """Into the trainer's own history, and to its other callbacks; without the numbers TRL still collects."""
        Loop.log(self, dict(metrics))  # type: ignore[arg-type]


def _steps(native: Any) -> int:
    """Where training ends, also for a script that counts epochs."""
    if native.args.max_steps > 0:
        return int(native.args.max_steps)
    return int(native.set_initial_training_values(native.args, native.get_train_dataloader())[-1])


def _arguments(init: Any, cls: type[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor by name. One that passes on whatever comes has the names of the class it passes it to.

    :raises TypeError: as the constructor itself would.
    """
    own = inspect.signature(init)
    given = dict(own.bind(*args, **kwargs).arguments)
    passed_on = {parameter.kind: name for name, parameter in own.parameters.items()}
    if Parameter.VAR_KEYWORD not in passed_on:
        return given
    rest = given.pop(passed_on.get(Parameter.VAR_POSITIONAL, ""), ())
    given |= given.pop(passed_on[Parameter.VAR_KEYWORD], {})
    free = [name for name in _named(cls) if name not in given]
    if len(rest) > len(free):
        raise TypeError(f"{cls.__name__} takes no {len(args)} positional arguments")
    return {**given, **dict(zip(free, rest, strict=False))}


def _named(cls: type[Any]) -> list[str]:
    """The parameters of the nearest constructor that lists all of its own, without ``self``."""
    for base in cls.__mro__[cls.__mro__.index(Grafted) + 1 :]:
        parameters = inspect.signature(vars(base)["__init__"]).parameters if "__init__" in vars(base) else {}
        if parameters and not any(item.kind is Parameter.VAR_KEYWORD for item in parameters.values()):
            return list(parameters)[1:]
    return []


def _bind(given: dict[str, Any], contributions: Contributions, family: Family) -> Columns | None:
    """Write the contributions into the arguments of the constructor."""
    for name, role in (("train_dataset", "train"), ("eval_dataset", "eval")):
        if contributions.wrap_dataset is not None:
            given[name] = contributions.wrap_dataset(given.get(name), role)
    if contributions.wrap_model is not None:
        given["model"] = contributions.wrap_model(_instance(given["model"]))
    roll = rollout_func(contributions.rollout, contributions.decoder)
    if roll is not None:
        if given.get("rollout_func") is not None:
            raise BindingError(
                "the script gives a rollout_func, and a plugin brings one too", do="Leave one of them out"
            )
        given["rollout_func"] = roll
    if not (contributions.completion_rewards or contributions.reward_terms or contributions.reward_combination):
        return None
    return _bind_rewards(given, contributions, family)


def _bind_rewards(given: dict[str, Any], contributions: Contributions, family: Family) -> Columns:
    """The script's reward functions first, with its weights, then the plugins'."""
    own = given.get("reward_funcs") or []
    own = list(own) if isinstance(own, (list, tuple)) else [own]
    args = given.get("args")
    if args is None:
        raise BindingError(
            f"{family.trainer} keeps the weights of rewards in its configuration, and the script gives none",
            do=f"Give args={family.config}(...)",
        )
    args = given["args"] = copy.copy(args)  # the script's own stays as it is
    if contributions.completion_rewards or contributions.reward_terms or not own:
        made = columns_of(contributions, {}, family.trainer, batch_width(args))
    else:
        made = Columns([], [], contributions.reward_combination, {})
    weights = list(args.reward_weights or [1.0] * len(own))
    given["reward_funcs"] = [*own, *made.functions]
    args.reward_weights = [*weights, *made.weights]
    named = [TermColumn(f"script.{_name(function)}", weight) for function, weight in zip(own, weights, strict=True)]
    return Columns([*own, *made.functions], [*named, *made.columns], made.combination, made.board)


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", None) or type(function).__name__)


def _instance(model: Any) -> Any:
    if isinstance(model, str):
        raise BindingError(
            "a plugin wraps the model, and the script names one instead of giving it", do="Load it and give the object"
        )
    return model

"""Plugins in a user's own script: ``PPO = budwood.graft(PPO, {"reward_shaping": {...}})``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

from budwood import compose, config
from budwood.api import BindingError, Capabilities, Contributions, Graft, Run, Trainer, TrainerEvents
from budwood.plugins import Activation, Active, PerPlugin, activate, installed, kebab, load, snake
from budwood.progress import silent
from budwood.rhythm import Rhythm
from budwood.session import Session


def graft[T](target: T, plugins: Mapping[str, Mapping[str, Any] | None], *, seed: int = 0) -> T:
    """Graft plugins onto a trainer class or a built trainer; nothing else of the user's script changes.

    ``target``: a class, e.g. ``stable_baselines3.PPO`` (a subclass comes back, and every object of it gets plugins of
    its own), or an object (it comes back with everything bound that needs only its environment, buffer and callbacks;
    anything else is refused with the reason). ``plugins``: name -> section, as under ``plugins`` in a YAML; the order is
    the activation order. ``seed`` drives the plugins' own randomness.

    Raises ``ConfigError`` for a bad section, ``PluginError`` for a missing plugin, ``BindingError`` for a contribution
    that this trainer cannot bind.
    """
    adapter, capabilities = _adapter_for(target)
    sections = {snake(name): section or {} for name, section in plugins.items()}

    def contributions() -> Contributions:
        return _contributions(target, sections, capabilities, seed)

    def events(
        trainer: Trainer, bound: Contributions, log: Callable[[Mapping[str, float], int], None]
    ) -> TrainerEvents:
        return Session(trainer, bound, _Log(log), silent(), Rhythm())

    contributions()
    activation = Activation([], adapter)
    grafted: T = activation.ask(
        "build_graft", adapter, run=_run(adapter, {}, seed), graft=Graft(contributions, events), target=target
    )
    return grafted


def _contributions(target: Any, sections: Mapping[str, Any], capabilities: Capabilities, seed: int) -> Contributions:
    activation = activate(list(sections), None)
    validated = config.resolve_sections(sections, activation)
    made = compose.contributions(activation, lambda active: _run(active, validated, seed, activation), capabilities)
    if not inspect.isclass(target):
        _refuse_what_is_fixed(made, capabilities)
    return made


def _refuse_what_is_fixed(made: Contributions, capabilities: Capabilities) -> None:
    for binding in compose.bindings(made, capabilities):
        if binding.kind not in capabilities.graftable:
            raise BindingError(
                f"{binding.kind} {binding.name} cannot be bound to a trainer that is already built",
                who=binding.who,
                do=f"It goes into {binding.seam.place}, which is fixed at construction: graft the class instead",
            )


def _run(active: Active, sections: Mapping[str, Any], seed: int, activation: Activation | None = None) -> Run:
    def components(kind: str) -> Sequence[Any]:
        if activation is None:
            return ()
        run = PerPlugin(lambda other: _run(other, sections, seed, activation))
        return activation.collect("components", run=run, kind=kind)

    return Run(
        name="graft",
        seed=seed,
        config={},
        section=sections.get(active.name),
        trainer=None,
        env_id=None,
        folder=None,
        device="auto",
        components=components,
    )


def _adapter_for(target: Any) -> tuple[Active, Capabilities]:
    """The installed adapter that knows this class. Only adapters built on the class's own library are imported."""
    kind = target if inspect.isclass(target) else type(target)
    libraries = {base.__module__.partition(".")[0] for base in kind.__mro__}
    owners = metadata.packages_distributions()
    distributions = {kebab(name) for library in libraries for name in owners.get(library, ())}
    for item in installed():
        requires = metadata.distribution(item.distribution).requires or ()
        needed = {kebab(re.split(r"[\s\[<>=!~;(]", line, maxsplit=1)[0]) for line in requires if "extra ==" not in line}
        if not distributions & (needed - {"torch", "numpy", "gymnasium", "budwood"}):
            continue
        active = load(item)
        answer = Activation([], active).ask("capabilities", active, run=_run(active, {}, 0), target=target)
        if answer is not None:
            return active, answer
    raise BindingError(
        f"no installed adapter can graft {kind.__module__}.{kind.__qualname__}",
        do=f"Adapters are plugins such as budwood-sb3; installed are: {', '.join(i.name for i in installed()) or 'none'}",
    )


class _Log:
    """In a grafted script numbers go to the trainer's own logger."""

    def __init__(self, log: Callable[[Mapping[str, float], int], None]) -> None:
        self.metrics = log

    def flush(self) -> None:
        """The trainer's logger writes when it likes."""

"""Contributions in a user's own loop around a policy of LeRobot.

    policy = budwood.graft(policy, {"plugin": {...}})
    with policy.grafted(total_steps=1000) as loop:
        while loop.goes_on:
            update_policy(tracker, policy, next(batches), optimizer, ...)

The policy object becomes one of a subclass under the same name. Loss terms are in its ``forward``. LeRobot calls a policy's
``update()`` after every optimiser step, and that is where a boundary lies; a loop that does not use ``update_policy`` calls it
itself.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from budwood.api import BindingError, Capabilities, ContributionError, Contributions, Graft, StateTree, TrainerEvents
from budwood_lerobot import state
from budwood_lerobot.losses import with_terms
from budwood_lerobot.offline import capabilities

GRAFTABLE = frozenset(("loss_terms", "callbacks", "evaluators"))
OUTSIDE = "the script makes it before the policy is grafted"
Log = Callable[[Mapping[str, float], int], None]


def graft_capabilities(target: Any) -> Capabilities | None:
    """What a policy object can bind; None for anything else."""
    from lerobot.policies import PreTrainedPolicy

    cls = target if inspect.isclass(target) else type(target)
    if not issubclass(cls, PreTrainedPolicy):
        return None
    known = capabilities()
    seams = {kind: seam for kind, seam in known.seams.items() if kind in GRAFTABLE}
    refused = {**known.refused, **dict.fromkeys(set(known.seams) - GRAFTABLE, OUTSIDE)}
    return Capabilities(cls.__name__, seams, refused, known.loss_inputs, GRAFTABLE)


def build(graft: Graft, target: Any) -> Any:
    """``target`` itself, with everything bound."""
    if inspect.isclass(target):
        raise BindingError(
            f"{target.__name__} is made by LeRobot's make_policy, which would not see a grafted class",
            do="Graft the policy that it gives",
        )
    if isinstance(target, Grafted):
        raise BindingError("it is grafted already", do="Give all plugins in one call of graft")
    contributions = graft.contributions()
    cls = type(target)
    about = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    target.__class__ = type(cls.__name__, (Grafted, cls), about)
    # not as attributes of a module, which would be searched for parameters
    target.__dict__.update(_graft=graft, _contributions=contributions, _loop=None)
    return target


class Grafted:
    """In front of a policy's class."""

    _graft: Graft
    _contributions: Contributions
    _loop: Loop | None

    def forward(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        forward = super().forward  # type: ignore[misc]
        terms = self._contributions.loss_terms
        return (with_terms(self, forward, terms) if terms else forward)(batch, *args, **kwargs)

    def update(self) -> None:
        """After every optimiser step."""
        if hasattr(super(), "update"):
            super().update()  # type: ignore[misc]
        if self._loop is not None:
            self._loop.boundary()
        elif self._contributions.callbacks or self._contributions.evaluators:
            raise BindingError(
                "callbacks of plugins follow a loop, and none has begun",
                do="Train inside: with policy.grafted(total_steps=...) as loop",
            )

    def grafted(self, total_steps: int, log: Log | None = None) -> Loop:
        """The loop that follows, of ``total_steps`` optimiser steps. ``log(metrics, step)`` takes what plugins tell;
        by default Python's logging does."""
        return Loop(self, total_steps, log or _say)


class Loop:
    """A user's loop while it runs; implements what core asks of a :class:`budwood.api.Trainer` there."""

    n_envs = 1

    def __init__(self, policy: Any, total_steps: int, log: Log) -> None:
        self.native = policy
        self.total_steps = total_steps
        self.step = 0
        self._events: TrainerEvents = policy._graft.events(self, policy._contributions, log)
        self._wanted = True

    @property
    def goes_on(self) -> bool:
        """Whether there are steps left, and no plugin has stopped the loop."""
        return self._wanted and self.step < self.total_steps

    def __enter__(self) -> Loop:
        self._wanted = self._events.start()
        self.native.__dict__["_loop"] = self
        return self

    def __exit__(self, kind: Any, *others: Any) -> None:
        self.native.__dict__["_loop"] = None
        if kind is None:
            self._events.finish()

    def boundary(self) -> None:
        self.step += 1
        if self.step >= min(self._events.next_boundary, self.total_steps):
            self._wanted = self._events.boundary(self.step)

    def policy_state(self) -> StateTree:
        return {"policy": state.parameters(self.native)}

    def load_policy(self, saved: StateTree) -> None:
        state.load_parameters(self.native, saved["policy"])

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        raise ContributionError("a script that is grafted plays its own episodes", do="Evaluate in a run of budwood")

    def reset_policy(self, seed: int) -> None:
        raise ContributionError(
            "the policy of a grafted script cannot be drawn anew", do="Reset it in a run of budwood"
        )


def _say(metrics: Mapping[str, float], step: int) -> None:
    text = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    logging.getLogger(__name__).info("step %d: %s", step, text)

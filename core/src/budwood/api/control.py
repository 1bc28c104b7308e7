"""What happens during a run, and what a callback may ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from budwood.api.errors import BudwoodError, ContributionError
from budwood.api.reward import StepBatch
from budwood.api.state import Array, StateTree
from budwood.api.training import Rollout


@dataclass(frozen=True)
class Evaluation:
    """Episodes of the current policy with deterministic actions on fresh environments.

    ``returns`` (E,) sums of the environment's own reward, ``lengths`` (E,) in steps, ``env_steps`` spent, ``seed`` of the
    environments. ``metrics``: what else a trainer measures, such as a success rate; logged under ``eval/``.
    """

    returns: Array
    lengths: Array
    env_steps: int
    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class RunControl(Protocol):
    """Handed to every callback and evaluator.

    ``steps`` counts training environment steps up to the last boundary, ``env_steps`` those of evaluations too;
    ``total_steps`` is where training ends, ``n_envs`` how many environments run side by side. A trainer without
    environments counts optimiser steps, and one whose step is a decision of several environment steps counts decisions
    in ``steps``, and environment steps in ``env_steps`` all the same.
    """

    @property
    def steps(self) -> int: ...

    @property
    def env_steps(self) -> int: ...

    @property
    def total_steps(self) -> int: ...

    @property
    def n_envs(self) -> int: ...

    @property
    def goes_on(self) -> bool:
        """Whether there is anything left to train: not stopped, steps left, budget left. Known on resume as well."""

    def log(self, metrics: Mapping[str, float]) -> None:
        """Record numbers at the current step. Names: letters, digits and ``_ - . / : space``; prefix them ``plugin/``."""

    def evaluate(self, episodes: int, seed: int, observer: Callable[[StepBatch], None] | None = None) -> Evaluation:
        """Run ``episodes`` episodes now; ``observer`` sees every vector step, and only steps that count.

        Environments that have finished their share of episodes appear no more: the batch shrinks from ``n`` to the
        environments still running, and ``StepBatch.infos[i]['env_index']`` tells which one a row is.
        """

    def reset_policy(self, seed: int) -> None:
        """Fresh policy, critics and optimisers; observation statistics and step count stay; episodes restart.

        Happens at the end of the boundary, after evaluations and checkpoint, and only if training goes on: the policy that a
        run leaves behind is always one that was trained.
        """

    def policy_state(self) -> StateTree:
        """The policy's parameters and the observation statistics as they are now, copied."""

    def load_policy(self, state: StateTree) -> None:
        """Put back what :meth:`policy_state` gave; optimisers and counters stay."""

    def checkpoint(self) -> None:
        """Write a checkpoint at the end of the current boundary (nothing in a grafted script)."""

    def stop(self, reason: str) -> None:
        """End training at the end of the current boundary."""

    def note(self, text: str) -> None:
        """Tell a person one sentence at the end of the run: on the screen, in its result and in the report. In a grafted
        script nobody is told."""


class RunCallback:
    """Override what you need; an event nobody overrides costs nothing.

    Order at a boundary: ``on_rollout_end`` -> (the trainer updates) -> ``on_update_end`` -> ``on_eval`` -> checkpoint.
    At the end: ``on_run_end`` -> the last ``on_eval``, of the policy that the run leaves behind -> checkpoint.
    A callback that holds state gives ``state_dict`` / ``load_state_dict``; both are called at boundaries only. What
    ``on_checkpoint`` changes or logs is not in the checkpoint it is told of. After a resume ``on_run_start`` comes first,
    with ``log`` silent, then ``load_state_dict``. For runs in several processes one that holds state says in its class how that
    stands, ``across_processes``: see :data:`budwood.api.Across`.
    """

    def without_rollouts(self) -> BudwoodError | None:
        """Asked at set-up where a trainer shows no rollouts: what is wrong with that, None if nothing is."""
        return None

    def on_run_start(self, control: RunControl) -> None: ...

    def on_rollout_end(self, control: RunControl, rollout: Rollout) -> None: ...

    def on_update_end(self, control: RunControl) -> None: ...

    def on_eval(self, control: RunControl, evaluation: Evaluation) -> None: ...

    def on_eval_metrics(self, control: RunControl, metrics: Mapping[str, float]) -> None:
        """In place of ``on_eval`` where the trainer evaluates by numbers of its own (:class:`Measured`), not by episodes."""

    def on_checkpoint(self, control: RunControl, folder: Path) -> None: ...

    def on_run_end(self, control: RunControl) -> None: ...

    def state_dict(self) -> StateTree:
        return {}

    def load_state_dict(self, state: StateTree) -> None: ...


@dataclass(frozen=True)
class EvalReport:
    """``metrics`` are logged as ``plugin/name``, at the step of the boundary."""

    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluator:
    """``run(control)`` is called every ``every`` training steps (at the next boundary) and once at the end."""

    name: str
    every: int
    run: Callable[[RunControl], EvalReport]

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ContributionError(f"evaluator {self.name!r} is to run every {self.every} steps; give at least 1")

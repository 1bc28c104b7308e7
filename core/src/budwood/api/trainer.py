"""What an adapter provides: a trainer that core can run, save and resume, and the list of seams it can bind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from budwood.api.completions import CompletionReward
from budwood.api.control import Evaluation, Evaluator, RunCallback, RunControl
from budwood.api.generation import CompletionAdvantageFn, Decoder, RolloutFn
from budwood.api.processes import ALONE, Processes
from budwood.api.reward import RewardCombination, RewardTerm, StepBatch
from budwood.api.state import StateTree
from budwood.api.training import AdvantageFn, LossTerm, Objective, PolicyFactory, Rollout


@dataclass(frozen=True)
class Contributed[T]:
    """A contribution and who made it: ``plugin`` is the YAML name, ``who`` is ``distribution version``."""

    value: T
    plugin: str
    who: str


@dataclass(frozen=True)
class Seam:
    """Where a kind of contribution is bound. ``grade`` A (documented), B (semi-public) or C (private, canary-tested)."""

    place: str
    grade: str = "A"


@dataclass(frozen=True)
class Capabilities:
    """What a trainer can bind: kind -> seam, and for every other kind the reason it cannot.

    Kinds are hook names: reward_terms, completion_rewards, reward_combination, loss_terms, objective, advantage,
    completion_advantage, rollout, decoder, build_policy, build_env, build_dataset, build_model, callbacks, evaluators.
    ``loss_inputs`` names what a loss may need. ``graftable`` are the kinds that can be bound to an object that is already
    built. ``rollouts``: whether callbacks are shown finished rollouts. ``one_process``: why several processes cannot train
    this trainer together; '' if they can.
    """

    trainer: str
    seams: Mapping[str, Seam]
    refused: Mapping[str, str] = field(default_factory=dict)
    loss_inputs: frozenset[str] = frozenset()
    graftable: frozenset[str] = frozenset()
    rollouts: bool = False
    one_process: str = "its adapter does not share the work among processes"


@dataclass(frozen=True)
class Contributions:
    """Everything the active plugins gave, in YAML order, attributed; made and checked by core, bound by an adapter."""

    reward_terms: Sequence[Contributed[RewardTerm]] = ()
    completion_rewards: Sequence[Contributed[CompletionReward]] = ()
    reward_combination: Contributed[RewardCombination] | None = None
    loss_terms: Sequence[Contributed[LossTerm]] = ()
    objective: Contributed[Objective] | None = None
    advantage: Contributed[AdvantageFn] | None = None
    completion_advantage: Contributed[CompletionAdvantageFn] | None = None
    rollout: Contributed[RolloutFn] | None = None
    decoder: Contributed[Decoder] | None = None
    policy: Contributed[PolicyFactory] | None = None
    callbacks: Sequence[Contributed[RunCallback]] = ()
    evaluators: Sequence[Contributed[Evaluator]] = ()
    wrap_env: Callable[[Any, str], Any] | None = None
    """(environment factory, role) -> environment factory, the composed ``build_env`` hooks; None if there are none."""
    wrap_dataset: Callable[[Any, str], Any] | None = None
    """(dataset or None, role) -> dataset or None, the composed ``build_dataset`` hooks; None if there are none."""
    wrap_model: Callable[[Any], Any] | None = None
    """model -> model, the composed ``build_model`` hooks; None if there are none."""


@dataclass(frozen=True)
class Run:
    """The context a hook receives. One for every plugin: ``section`` is that plugin's own validated configuration.

    ``config`` is the whole resolved configuration as plain data. ``folder`` is None in a grafted script.
    ``components(kind)`` collects what all active plugins offer for an extension point, attributed.
    """

    name: str
    seed: int
    config: Mapping[str, Any]
    section: Any
    trainer: Any
    """The adapter's validated ``trainer`` section (its own model); None in a grafted script."""
    env_id: str | None
    folder: Path | None
    device: str
    components: Callable[[str], Sequence[Contributed[Any]]]
    processes: Processes = ALONE
    """Those that train this run together."""
    begun_with: int = 1
    """How many processes this run began with. What the configuration says for each process, it says for so many."""

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator of its own for every purpose, derived from the run's seed; adding one never moves another."""
        return np.random.default_rng([self.seed, *purpose.encode()])


class TrainerEvents(Protocol):
    """What a trainer reports to core while it trains. ``control`` is handed to callbacks by core itself."""

    control: RunControl

    def start(self) -> bool:
        """Before the first rollout, also after a resume. False: do not train at all, since a plugin has stopped the run
        already, now or before the checkpoint."""

    def wants_rollouts(self) -> bool:
        """Whether any callback overrides ``on_rollout_end``: if not, no :class:`Rollout` need be made. All processes
        are told the same."""

    def rollout_end(self, rollout: Rollout) -> None: ...

    def boundary(self, steps: int) -> bool:
        """After an update, before the next rollout. Runs callbacks, evaluations and checkpoints that are due.

        ``steps`` are training environment steps so far, or what :class:`Counted` calls them. False: stop now. May be called
        as often as the trainer has such a moment; ``next_boundary`` tells from which step on it has anything to do.
        """

    next_boundary: int

    def log(self, metrics: Mapping[str, float], steps: int) -> None: ...

    def measured(self, metrics: Mapping[str, float], steps: int) -> None:
        """A grafted script has evaluated, by numbers of its trainer: for ``on_eval_metrics``. They are not logged again."""

    def finish(self) -> None:
        """After training. Core calls it for a run; in a grafted script the adapter does."""


class Trainer(Protocol):
    """Built by an adapter, driven by core."""

    total_steps: int
    n_envs: int
    native: Any
    """The trainer's own object, e.g. an SB3 model."""

    def fit(self, events: TrainerEvents) -> None:
        """Train until ``total_steps``; call ``events`` at boundaries; return when done or told to stop."""

    def evaluate(self, episodes: int, seed: int, observer: Callable[[StepBatch], None] | None = None) -> Evaluation:
        """See :meth:`RunControl.evaluate`. Leaves every random generator of the training as it was.

        Of several processes only the first is asked, unless the class says ``evaluates_together = True``.
        """

    def reset_policy(self, seed: int) -> None: ...

    def state_dict(self) -> StateTree:
        """Everything of the trainer at a boundary: parameters, optimisers, buffers, generators, environment states."""

    def load_state_dict(self, state: StateTree) -> Sequence[str]:
        """Restore before :meth:`fit`. Returns what cannot continue exactly, one sentence each."""

    def policy_state(self) -> StateTree:
        """The part of :meth:`state_dict` that :meth:`load_policy` reads, copied."""

    def load_policy(self, state: StateTree) -> None:
        """Warm start: take only the policy's parameters and observation statistics from ``state``."""

    def export(self, folder: Path) -> Path:
        """Write the trainer's native file(s), e.g. ``model.zip``; return the path to load."""

    def close(self) -> None: ...


@runtime_checkable
class Measured(Protocol):
    """A trainer that evaluates by numbers of its own, such as a loss on held-out rows, and may have no episodes."""

    def measure(self) -> Mapping[str, float]:
        """Evaluate now; empty if there is nothing to evaluate on. Leaves every random generator of the training as it was."""


@runtime_checkable
class Counted(Protocol):
    """A trainer of whose steps one may be several of the environment's, as a decision of several actions is, or none."""

    unit: str
    """What ``total_steps`` and every ``steps`` count, as the label of an axis; environment steps of any other trainer."""

    def env_steps(self) -> int | None:
        """Environment steps of training so far, from any start that holds from :meth:`TrainerEvents.start` on. None: as
        many as steps."""


@dataclass(frozen=True)
class Graft:
    """What an adapter needs to graft onto a class: everything is made anew for each object of it.

    ``contributions()`` activates the plugins afresh. ``events(trainer, contributions)`` is the core's side of a run without
    a folder: callbacks, evaluators and stopping; metrics go to ``log(metrics, steps)`` given by the adapter.
    """

    contributions: Callable[[], Contributions]
    events: Callable[[Trainer, Contributions, Callable[[Mapping[str, float], int], None]], TrainerEvents]

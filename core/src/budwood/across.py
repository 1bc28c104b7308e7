"""What contributions remember, across the processes of a run: who must say so, how it is compared, joined and divided again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from budwood import tree
from budwood.api import (
    ACROSS,
    BindingError,
    CheckpointError,
    Contributed,
    ContributionError,
    Contributions,
    Evaluation,
    Processes,
    RunCallback,
    StateTree,
    StepBatch,
    Trainer,
    blamed,
)


def check(made: Contributions) -> None:
    """Every contribution that remembers something says how that stands across processes: see ``budwood.api.Across``.

    :raises BindingError: for those that do not.
    """
    silent = [(what, item, said) for what, item, holder in _remembering(made) if (said := _said(holder)) not in ACROSS]
    if not silent:
        return
    problems = [
        f"{what} of {item.plugin} ({item.who})" + ("" if said is None else f" says {said!r}")
        for what, item, said in silent
    ]
    raise BindingError(
        f"{', '.join(problems)}: it remembers something, and does not say how that stands across several processes",
        where=f"plugins.{silent[0][1].plugin}",
        who=silent[0][1].who,
        do=f"Give its class the attribute across_processes, one of {', '.join(ACROSS)}; or train in one process",
    )


class Memories:
    """What the contributions of a run remember, as a checkpoint carries it for all processes.

    ``callbacks`` are those that this process calls.
    """

    def __init__(self, made: Contributions, processes: Processes) -> None:
        self._made, self._processes = made, processes
        self.callbacks = [item for item in made.callbacks if self._called(item)]
        self._rewards = {
            f"{item.plugin}.{item.value.name}": item for item in _rewards(made) if item.value.state is not None
        }

    def _called(self, item: Contributed[RunCallback]) -> bool:
        return self._processes.first or _said(item.value) != "first"

    def synchronise(self) -> None:
        """At a boundary, in every process: what has to be made the same is."""
        for _, _, holder in _remembering(self._made):
            if hasattr(holder, "synchronise"):
                holder.synchronise(self._processes)

    def state_dict(self, when: str) -> StateTree:
        """On process 0 the memory of all; ``when`` is said of an error.

        :raises ContributionError: what is said to be the same is not.
        """
        callbacks = [_asked(item, item.value, when) for item in self._made.callbacks]
        terms = {name: _asked(item, item.value.state, when) for name, item in self._rewards.items()}
        parts = self._processes.to_first((callbacks, terms)) if self._processes.several else []
        if parts:
            callbacks = [
                _joined([part[0][i] for part in parts], _said(item.value), item)
                for i, item in enumerate(self._made.callbacks)
            ]
            terms = {
                name: _joined([part[1][name] for part in parts], _said(item.value.state), item)
                for name, item in self._rewards.items()
            }
        owners = [item.plugin for item in self._made.callbacks]
        saved = [{"plugin": owner, "state": state} for owner, state in zip(owners, callbacks, strict=True)]
        return {"callbacks": saved, "terms": terms}

    def load_state_dict(self, state: StateTree, when: str) -> None:
        if len(state["callbacks"]) != len(self._made.callbacks):
            raise CheckpointError(
                f"the checkpoint holds the state of {len(state['callbacks'])} callbacks, and the plugins give "
                f"{len(self._made.callbacks)} now",
                do="Install the versions of the plugins that the run was trained with: see its versions.json",
            )
        for item, saved in zip(self._made.callbacks, state["callbacks"], strict=True):
            if self._called(item):
                self._load(item, item.value, saved["state"], when)
        for name, term in self._rewards.items():
            self._load(term, term.value.state, state["terms"][name], when)

    def _load(self, item: Contributed[Any], holder: Any, saved: StateTree, when: str) -> None:
        if self._processes.several and _said(holder) == "environments":
            saved = _mapped(lambda arrays: arrays[0][self._processes.part(len(arrays[0]))], [saved])
        with blamed(item, "load_state_dict", when):
            holder.load_state_dict(saved)


def _asked(item: Contributed[Any], holder: Any, when: str) -> StateTree:
    with blamed(item, "state_dict", when):
        state: StateTree = holder.state_dict()
    return state


def play(
    trainer: Trainer, processes: Processes, episodes: int, seed: int, observer: Callable[[StepBatch], None] | None
) -> Evaluation:
    """Process 0 plays the episodes, and the others watch: every observer sees the same steps.

    A trainer whose own evaluation exchanges something says ``evaluates_together``, and gives the same in every process.
    """
    if not processes.several or getattr(trainer, "evaluates_together", False):
        return trainer.evaluate(episodes, seed, observer)
    if not processes.first:
        seen: Any = None
        while not isinstance(seen := processes.from_first(seen), Evaluation):
            assert observer is not None
            observer(seen)
        return seen

    def shown(batch: StepBatch) -> None:
        assert observer is not None
        observer(processes.from_first(batch))

    return processes.from_first(trainer.evaluate(episodes, seed, None if observer is None else shown))


def _remembering(made: Contributions) -> list[tuple[str, Contributed[Any], Any]]:
    """(what it is, contribution, what holds its memory) of everything that a checkpoint carries for plugins."""
    rewards: list[tuple[str, Contributed[Any], Any]] = [
        (f"reward {item.value.name}", item, item.value.state) for item in _rewards(made) if item.value.state is not None
    ]
    callbacks = [
        (f"callback {type(item.value).__name__}", item, item.value)
        for item in made.callbacks
        if type(item.value).state_dict is not RunCallback.state_dict or _said(item.value) is not None
    ]
    return [*rewards, *callbacks]


def _rewards(made: Contributions) -> Sequence[Contributed[Any]]:
    return (*made.reward_terms, *made.completion_rewards)


def _said(holder: Any) -> Any:
    return getattr(holder, "across_processes", None)


def _joined(parts: Sequence[StateTree], said: str | None, item: Contributed[Any]) -> StateTree:
    if said == "first":
        return parts[0]
    if said == "environments":
        joined: StateTree = _mapped(np.concatenate, parts)
        return joined
    for rank, part in enumerate(parts):
        if not _equal(parts[0], part):
            raise ContributionError(
                f"what it remembers is not the same in process 0 and in process {rank}",
                where=f"plugins.{item.plugin}",
                who=item.who,
                do="It must follow from what every process is told alike, or be made so by synchronise(processes)",
            )
    return parts[0]


def _mapped(function: Callable[[list[Any]], Any], trees: Sequence[Any]) -> Any:
    """``function`` of the arrays at the same place of every tree; what is no array is taken from the first."""
    first = trees[0]
    if isinstance(first, dict):
        return {key: _mapped(function, [tree[key] for tree in trees]) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(_mapped(function, list(items)) for items in zip(*trees, strict=True))
    return function(list(trees)) if isinstance(first, np.ndarray) else first


def _equal(one: StateTree, other: StateTree) -> bool:
    (shape, arrays), (other_shape, others) = tree.encode(one), tree.encode(other)
    return shape == other_shape and all(np.array_equal(value, others[name]) for name, value in arrays.items())

"""What contributions remember, across the processes of a run: who must say so, how it is compared, joined and divided again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from budwood import tree
from budwood.api import (
    ACROSS,
    BindingError,
    Contributed,
    ContributionError,
    Contributions,
    Evaluation,
    Processes,
    RunCallback,
    StateTree,
    StepBatch,
    Trainer,
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


def takes_part(item: Contributed[RunCallback], processes: Processes) -> bool:
    """Whether this process calls a callback at all."""
    return processes.first or _said(item.value) != "first"


def synchronise(made: Contributions, processes: Processes) -> None:
    for _, _, holder in _remembering(made):
        if hasattr(holder, "synchronise"):
            holder.synchronise(processes)


def whole(made: Contributions, processes: Processes, state: StateTree) -> StateTree:
    """A session's state with the memory of all processes, on process 0; on the others, ``state``.

    :raises ContributionError: what is said to be the same is not.
    """
    parts = processes.to_first({"callbacks": state["callbacks"], "terms": state["terms"]})
    if not parts:
        return state
    callbacks = [
        {**saved, "state": _joined([part["callbacks"][i]["state"] for part in parts], _said(item.value), item)}
        for i, (saved, item) in enumerate(zip(state["callbacks"], made.callbacks, strict=True))
    ]
    terms = {
        name: _joined([part["terms"][name] for part in parts], _said(item.value.state), item)
        for item in _rewards(made)
        if (name := f"{item.plugin}.{item.value.name}") in state["terms"]
    }
    return {**state, "callbacks": callbacks, "terms": terms}


def own(holder: Any, saved: StateTree, processes: Processes) -> StateTree:
    """This process's part of what :func:`whole` wrote."""
    if not processes.several or _said(holder) != "environments":
        return saved
    divided: StateTree = _mapped(lambda arrays: arrays[0][processes.part(len(arrays[0]))], [saved])
    return divided


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

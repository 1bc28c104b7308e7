"""What contributions remember, across the processes of a run: who must say so, how it is compared, joined and divided again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from budwood import tree
from budwood.api import (
    ACROSS,
    Across,
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

Observer = Callable[[StepBatch], None]


def check(made: Contributions) -> None:
    """Every contribution that remembers something says how that stands across processes: see ``budwood.api.Across``.

    :raises BindingError: for those that do not.
    """
    silent = [
        (what, item, said)
        for what, item, holder in _remembering(made)
        if (said := said_of(holder)) not in words_for(item.value)
    ]
    if not silent:
        return
    problems = [
        f"{what} of {item.plugin} ({item.who})"
        + ("" if said is None else f" says {said!r}")
        + (", which is for callbacks" if said in ACROSS else "")
        for what, item, said in silent
    ]
    raise BindingError(
        f"{', '.join(problems)}: it remembers something, and has to say how that stands across several processes",
        where=f"plugins.{silent[0][1].plugin}",
        who=silent[0][1].who,
        do=f"Give its class the attribute across_processes, one of {', '.join(words_for(silent[0][1].value))}; or train in one "
        "process",
    )


class Memories:
    """What the contributions of a run remember, as a checkpoint carries it for all processes.

    ``callbacks`` are those that this process calls, and ``called_by_all`` those that every process does.
    """

    def __init__(self, made: Contributions, processes: Processes) -> None:
        self._made, self._processes = made, processes
        self.callbacks = [item for item in made.callbacks if self._called(item)]
        self.called_by_all = [item for item in made.callbacks if not only_watches(item.value)]
        self._rewards = {
            f"{item.plugin}.{item.value.name}": item for item in _rewards(made) if item.value.state is not None
        }

    def _called(self, item: Contributed[RunCallback]) -> bool:
        return self._processes.first or not only_watches(item.value)

    def synchronise(self) -> None:
        """At a boundary, in every process: what has to be made the same is."""
        for _, _, holder in _remembering(self._made):
            if hasattr(holder, "synchronise"):
                holder.synchronise(self._processes)

    def state_dict(self, when: str) -> StateTree:
        """On process 0 the memory of all; ``when`` is said of an error.

        :raises ContributionError: what is said to be the same is not.
        """
        callbacks = [self._memory(item, item.value, when) for item in self._made.callbacks]
        terms = {name: self._memory(item, item.value.state, when) for name, item in self._rewards.items()}
        owners = [item.plugin for item in self._made.callbacks]
        saved = [{"plugin": owner, "state": state} for owner, state in zip(owners, callbacks, strict=True)]
        return {"callbacks": saved, "terms": terms}

    def _memory(self, item: Contributed[Any], holder: Any, when: str) -> StateTree:
        """Of what is the same only process 0 keeps it; the others send its fingerprint. A callback that process 0 alone calls
        is asked there alone."""
        said = said_of(holder)
        if said == "first" and not self._processes.first:
            return {}
        with blamed(item, "state_dict", when):
            state: StateTree = holder.state_dict()
        if not self._processes.several or said == "first":
            return state
        if said == "environments":
            parts = self._processes.to_first(state)
            with blamed(item, "state_dict", when):
                return _mapped(_concatenated, parts) if parts else state
        _check_same(self._processes.to_first(_fingerprints(state)), item)
        return state

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
        if self._processes.several and said_of(holder) == "environments":
            saved = _mapped(lambda arrays: arrays[0][self._processes.part(len(arrays[0]))], [saved])
        with blamed(item, "load_state_dict", when):
            holder.load_state_dict(saved)


def only_watches(callback: RunCallback) -> bool:
    return bool(said_of(callback) == "first")


def play(
    trainer: Trainer,
    processes: Processes,
    episodes: int,
    seed: int,
    observer: Observer | None,
    here: Observer | None = None,
) -> Evaluation:
    """Process 0 plays the episodes, and the others watch: every ``observer`` sees the same steps, ``here`` those of its own.

    A trainer whose own evaluation exchanges something says ``evaluates_together``, and gives the same in every process.
    """
    if not processes.several or getattr(trainer, "evaluates_together", False):
        return trainer.evaluate(episodes, seed, _both(observer, here))
    if not processes.first:
        seen: Any = None
        while not isinstance(seen := processes.from_first(seen), Evaluation):
            assert observer is not None
            observer(seen)
        return seen

    def shown(batch: StepBatch) -> None:
        assert observer is not None
        observer(processes.from_first(batch))

    return processes.from_first(trainer.evaluate(episodes, seed, _both(None if observer is None else shown, here)))


def _both(one: Observer | None, other: Observer | None) -> Observer | None:
    if one is None or other is None:
        return one or other

    def seen(batch: StepBatch) -> None:
        one(batch)
        other(batch)

    return seen


def _remembering(made: Contributions) -> list[tuple[str, Contributed[Any], Any]]:
    """(what it is, contribution, what holds its memory) of everything that a checkpoint carries for plugins."""
    named = [(f"reward {item.value.name}", item) for item in _rewards(made)]
    named += [(f"callback {type(item.value).__name__}", item) for item in made.callbacks]
    return [(what, item, holder) for what, item in named if (holder := memory_of(item.value)) is not None]


def memory_of(value: Any) -> Any:
    """What holds the memory of a reward or a callback and so has to say ``across_processes``; None: it has none."""
    if not isinstance(value, RunCallback):
        return getattr(value, "state", None)
    remembers = type(value).state_dict is not RunCallback.state_dict or said_of(value) is not None
    return value if remembers else None


def _rewards(made: Contributions) -> Sequence[Contributed[Any]]:
    return (*made.reward_terms, *made.completion_rewards)


def words_for(value: Any) -> Sequence[Across]:
    """What a reward or a callback may say of its memory: every process computes rewards, so none is process 0's alone."""
    return ACROSS if isinstance(value, RunCallback) else [word for word in ACROSS if word != "first"]


def said_of(holder: Any) -> Any:
    """Its ``across_processes``, None if it has none."""
    return getattr(holder, "across_processes", None)


def _fingerprints(state: StateTree) -> dict[Any, str]:
    """Of each entry, by its bits: a NaN is the same as itself, and tensors are compared wherever they live."""
    return {key: tree.fingerprint(value) for key, value in state.items()}


def _check_same(prints: Sequence[Mapping[Any, str]], item: Contributed[Any]) -> None:
    for rank, other in enumerate(prints):
        names = {**prints[0], **other}
        if apart := [str(name) for name in names if prints[0].get(name) != other.get(name)]:
            raise ContributionError(
                f"what it remembers is not the same in process 0 and in process {rank}: {', '.join(apart)}",
                where=f"plugins.{item.plugin}",
                who=item.who,
                do="It must follow from what every process is told alike, or be made so by synchronise(processes)",
            )


def _mapped(function: Callable[[list[Any]], Any], trees: Sequence[Any]) -> Any:
    """``function`` of the arrays or tensors at the same place of every tree; what is neither has to be the same in all."""
    first = trees[0]
    if isinstance(first, dict):
        return {key: _mapped(function, [one[key] for one in trees]) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(_mapped(function, list(items)) for items in zip(*trees, strict=True))
    if isinstance(first, np.ndarray) or _is_tensor(first):
        return function(list(trees))
    if len({tree.fingerprint(one) for one in trees}) > 1:
        raise ValueError(
            "what is neither array nor tensor differs between processes: keep rows of environments in an array"
        )
    return first


def _concatenated(rows: list[Any]) -> Any:
    """On the CPU, as in a checkpoint: each process may have a GPU of its own."""
    return sys.modules["torch"].cat([row.cpu() for row in rows]) if _is_tensor(rows[0]) else np.concatenate(rows)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)

"""What callbacks ask of a run, to be done at the end of a boundary. Of several processes all have to be asked the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from budwood.api import Contributed, ContributionError, RunControl

Wish = tuple[Any, str, str, str]
"""What must be the same everywhere, in words, and the plugin and the version of who asked."""


@dataclass
class Wishes:
    """``stopped``: why training is to end. ``reset_seed``: of the fresh policy. None: nobody asked."""

    stopped: str | None = None
    checkpoint: bool = False
    reset_seed: int | None = None
    asking: Contributed[Any] | None = field(default=None, repr=False)
    """Who is called at the moment."""
    _made: dict[str, Wish] = field(default_factory=dict, repr=False)

    def stop(self, reason: str) -> None:
        self.stopped = reason
        self._note("stop", True, f"to stop ({reason})")

    def save(self) -> None:
        self.checkpoint = True
        self._note("checkpoint", True, "for a checkpoint")

    def reset(self, seed: int) -> None:
        self.reset_seed = seed
        self._note("reset", seed, f"for a fresh policy of seed {seed}")

    def _note(self, what: str, value: Any, words: str) -> None:
        by = self.asking
        self._made[what] = (value, words, "" if by is None else by.plugin, "" if by is None else by.who)

    def made(self) -> dict[str, Wish]:
        """What was asked for since this was called last."""
        made, self._made = self._made, {}
        return made


def check(everywhere: Sequence[Mapping[str, Wish]], when: str) -> None:
    """What was asked for in one process was asked for in all: one that ends, saves or resets while the others go on would
    wait for them until the deadline, or train on alone.

    :raises ContributionError: it was not, with what each process was asked for.
    """
    if all(_values(one) == _values(everywhere[0]) for one in everywhere):
        return
    plugin, who = next(by for made in everywhere for by in _apart(made, everywhere))
    said = "; ".join(
        f"process {rank}: {' and '.join(wish[1] for wish in made.values()) or 'nothing'}"
        for rank, made in enumerate(everywhere)
    )
    raise ContributionError(
        f"at {when} its callback asked for different things in the processes of this run ({said})",
        where=f"plugins.{plugin}" if plugin else "plugins",
        who=who,
        do="A callback is called in every process and has to ask for the same in each: let it decide from what all are "
        "told alike, such as evaluations and metrics, or decide in process 0 and tell the others: "
        "run.processes.from_first(decision)",
    )


def _values(made: Mapping[str, Wish]) -> dict[str, Any]:
    return {what: wish[0] for what, wish in made.items()}


def _apart(made: Mapping[str, Wish], everywhere: Sequence[Mapping[str, Wish]]) -> Iterator[tuple[str, str]]:
    """(plugin, version) of who asked here for what was not asked for everywhere."""
    for what, wish in made.items():
        if any(what not in other or other[what][0] != wish[0] for other in everywhere):
            yield wish[2], wish[3]


REFUSED = ("evaluate", "reset_policy", "load_policy", "checkpoint", "stop")
"""What a callback may not do that says it only watches."""


class Watching:
    """``RunControl`` for a callback that says ``across_processes = "first"``, whatever the number of processes: it looks, logs
    and notes.

    What it asked for could not be done: process 0 alone calls it, the others would learn of it later than process 0's own
    callbacks, which ask ``goes_on``, and an evaluation needs all of them.
    """

    def __init__(self, control: RunControl) -> None:
        self._control = control

    def __getattr__(self, name: str) -> Any:
        if name in REFUSED:
            raise ContributionError(
                f'it called control.{name}, and says across_processes = "first", which is for callbacks that only watch: '
                "in several processes the others are not told what it asks for",
                do='Let its class say across_processes = "same", and decide from what every process is told alike, or by '
                "run.processes.from_first(decision)",
            )
        return getattr(self._control, name)

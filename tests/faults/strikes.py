"""A fault, and where a run can be struck by one: it is armed in the process that trains, before that starts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budwood import checkpoint, journal, processes
from budwood.folder import RunFolder

Counts = Mapping[str, int]
"""Place -> how often the untouched run passes it."""
ENDED = r"(?s).*error: \S.*"


def places() -> dict[str, tuple[Any, str]]:
    """Where a run can be struck: (owner, name) of what is called there."""
    import torch

    return {
        "update": (torch.optim.Adam, "step"),
        "checkpoint": (checkpoint.Checkpoints, "save"),
        "file of a checkpoint": (checkpoint, "_write_file"),
        "fsync": (os, "fsync"),
        "journal": (journal.Journal, "flush"),
        "write": (os, "write"),
        "exchange": (processes.Joined, "gather"),
    }


@dataclass(frozen=True)
class Strike:
    """The moment of a fault, for the one who watches: monotonic seconds, in the file that ``place`` names."""

    place: Path

    def now(self) -> None:
        if not self.place.exists():
            self.place.write_text(repr(time.monotonic()))


@dataclass(frozen=True)
class Fault:
    """``arm`` prepares it in the training process. ``goes_on``: the run must come to its end all the same; otherwise its
    error must match ``says``, or a signal has killed it. ``left`` is what is wrong with what it left, ``damage`` is done to its
    folder. ``twice``: two processes resume it at once. ``deadline``: seconds that one process waits for another.
    ``tracker``: how MLflow behaves, a :class:`tracker.Behaviour`."""

    kind: str
    about: str
    arm: Callable[[Strike, Path], None]
    damage: Callable[[RunFolder], None] | None = None
    goes_on: bool = False
    says: str = ENDED
    left: Callable[[RunFolder], str] | None = None
    twice: bool = False
    deadline: float | None = None
    tracker: Any = None


Draw = Callable[..., Fault]
"""(generator, the counts of each process of the run) -> a fault."""


def at_call(owner: Any, name: str, call: int, act: Callable[[], None], *, after: bool = False) -> None:
    """``act`` at the ``call``-th call of ``owner.name`` from now on, before it or after it."""
    original, count = getattr(owner, name), [0]

    def counting(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        now = count[0] == call
        if now and not after:
            act()
        answer = original(*args, **kwargs)
        if now and after:
            act()
        return answer

    setattr(owner, name, counting)


def every_call(owner: Any, name: str, act: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def acting(*args: Any, **kwargs: Any) -> Any:
        act()
        return original(*args, **kwargs)

    setattr(owner, name, acting)

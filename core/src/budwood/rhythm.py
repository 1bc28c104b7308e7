"""How often what happens in a run, counted in training environment steps."""

from __future__ import annotations

from dataclasses import dataclass, field

NEVER = 1 << 62


@dataclass(frozen=True)
class Rhythm:
    """How often what happens, in training environment steps; None: only at the end. ``episodes`` 0: never.

    ``budget``: environment steps, those of evaluations too, at which training ends; None: no such end.
    """

    evaluate_every: int | None = None
    episodes: int = 0
    evaluation_seed: int = 10_000
    checkpoint_every: int | None = None
    budget: int | None = None


@dataclass
class Due:
    """The next multiple of ``every`` at which something is to happen."""

    every: int | None
    next: int = field(init=False)
    last: int = field(init=False)

    def __post_init__(self) -> None:
        self.advance(0)

    def advance(self, steps: int) -> None:
        self.last = steps
        self.next = NEVER if self.every is None else (steps // self.every + 1) * self.every

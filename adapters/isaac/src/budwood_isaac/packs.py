"""The reward terms of a task as a pack: what a plugin that opens ``reward_shaping.terms`` reads.

A pack is anything with ``terms`` and ``signals``, and ``criteria`` if it has any; a term is anything with ``name``, ``sign``,
``signal`` and ``contribution()``. Nothing of that plugin is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from budwood.api import Array, RewardTerm, StepBatch
from budwood_isaac.vec import PREFIX


@dataclass(frozen=True)
class ManagerTerm:
    """One term of a task's reward manager, with the author's sign and without the author's weight.

    ``sign`` is None: a term that the author subtracts need not be negative at every step.
    """

    name: str
    author_weight: float
    sign: None = None

    @property
    def key(self) -> str:
        return f"{PREFIX}{self.name}"

    def signal(self, batch: StepBatch) -> Array:
        return batch.info(self.key)

    def contribution(self) -> RewardTerm:
        return RewardTerm(self.name, info_key=self.key, weight=abs(self.author_weight))


@dataclass(frozen=True)
class TaskPack:
    """Every term of a task."""

    terms: tuple[ManagerTerm, ...]
    signals: Mapping[str, str] = field(default_factory=dict)

    @property
    def author_weights(self) -> dict[str, float]:
        """Term -> |weight|, without those that the author left at 0: under them the shaped reward is the author's."""
        return {term.name: abs(term.author_weight) for term in self.terms if term.author_weight != 0.0}


def pack(author_weights: Mapping[str, float]) -> TaskPack:
    return TaskPack(tuple(ManagerTerm(name, weight) for name, weight in author_weights.items()))

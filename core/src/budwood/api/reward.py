"""Reward contributions: per-step terms and the rule that combines them into one reward.

Shapes: ``n`` parallel environments, ``K`` reward columns, ``N`` samples. Column 0 is always the environment's own reward
(``env.reward``); the contributed terms follow in YAML order, named ``plugin.term``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from budwood.api.errors import ContributionError
from budwood.api.state import Array, Stateful

NATIVE = "env.reward"


class StepBatch:
    """What one vector step produced. Reused from step to step: copy what you keep.

    ``obs``       (n, ...) or dict: what the policy acted on, before any normalisation
    ``actions``   (n, ...) as sent to the environments
    ``next_obs``  (n, ...) or dict: the terminal observation where an episode ended
    ``rewards``   (n,) float64: the environments' own reward
    ``dones``     (n,) bool: episode ended, for any reason
    ``timeouts``  (n,) bool: it ended by a time limit only
    ``infos``     n mappings; prefer :meth:`info`
    """

    __slots__ = ("actions", "dones", "infos", "next_obs", "obs", "rewards", "timeouts")

    obs: Any
    actions: Array
    next_obs: Any
    rewards: Array
    dones: Array
    timeouts: Array
    infos: Sequence[Mapping[str, Any]]

    def info(self, key: str) -> Array:
        """(n,) float64 column of ``infos``; a missing key raises, and is never read as zero."""
        try:
            return np.array([info[key] for info in self.infos], dtype=np.float64)
        except KeyError:
            known = sorted(
                k for k in self.infos[0] if k not in ("TimeLimit.truncated", "terminal_observation", "episode")
            )
            raise ContributionError(
                f"the environment gives no info key {key!r}; it gives {', '.join(known) or 'none'}"
            ) from None


@dataclass(frozen=True)
class RewardTerm:
    """A named, batched reward signal.

    ``fn`` maps a :class:`StepBatch` to (n,) floats. Alternatively ``info_key`` names a column of the environment's infos,
    which the adapter reads together with all other such columns in one pass. Exactly one of the two is given.
    ``weight`` is used when no plugin claims ``reward_combination``: reward = env.reward + sum of weight x term.
    ``state`` is saved in checkpoints if the term remembers anything between steps (running statistics of an episode).
    """

    name: str
    fn: Callable[[StepBatch], Array] | None = None
    info_key: str | None = None
    weight: float = 1.0
    state: Stateful | None = None

    def __post_init__(self) -> None:
        if (self.fn is None) == (self.info_key is None):
            raise ContributionError(f"reward term {self.name!r} needs exactly one of fn and info_key")


@dataclass(frozen=True)
class TermColumn:
    """One column of the term matrix: ``name`` is ``env.reward`` or ``plugin.term``; ``weight`` as declared."""

    name: str
    weight: float


@runtime_checkable
class RewardCombination(Protocol):
    """Turns the term matrix into rewards; claimed by at most one plugin.

    ``version`` changes whenever the mapping does: stored rewards of another version are recomputed before an update.
    ``needs_obs``: whether ``__call__`` reads ``obs`` (then the adapter stores raw observations beside the terms).
    """

    version: int
    needs_obs: bool

    def bind(self, columns: Sequence[TermColumn]) -> None:
        """Called once at set-up with the columns of the term matrix, column 0 being the environment's own reward."""

    def __call__(self, terms: Array, obs: Any | None) -> Array:
        """(N, K) float64 terms, (N, ...) observations or None -> (N,) float64 rewards."""

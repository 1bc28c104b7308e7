"""Rewards of generated text: what a language-model trainer scores, and who scores it.

Shapes: ``B`` completions, one row each, of a batch that is scored at once. Columns of the reward matrix are named
``plugin.name``, as those of reward terms, and are combined by the same ``reward_combination``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from budwood.api.state import Stateful


@dataclass(frozen=True)
class Completions:
    """A batch of B completions, before any of them has a reward.

    ``prompts``  B prompts as the dataset has them: text, or a conversation (messages with ``role`` and ``content``)
    ``texts``    B completions as text, without special tokens
    ``ids``      B lists of token ids, end-of-text included where it was generated
    ``columns``  the dataset's other columns, name -> B values
    ``step``     optimiser steps taken so far
    ``log``      (name, value) records a number beside the trainer's own; every process must log the same names
    """

    prompts: Sequence[Any]
    texts: Sequence[str]
    ids: Sequence[Sequence[int]]
    columns: Mapping[str, Sequence[Any]]
    step: int
    log: Callable[[str, float], None]


@dataclass(frozen=True)
class CompletionReward:
    """A named reward of completions: ``fn`` gives B numbers, None where it does not apply to a row.

    ``weight`` is used when no plugin claims ``reward_combination``: the reward is the weighted sum of what applies.
    ``state`` is saved in checkpoints if the function remembers anything between batches.
    """

    name: str
    fn: Callable[[Completions], Sequence[float | None]]
    weight: float = 1.0
    state: Stateful | None = None

"""Reward of a pick against mined evidence sets: section 6 of the method's page, Eq. 8 of the paper, in four readings.

As printed, Eq. 8 charges max(0, |S| - |G| - red) only where |S| <= |G| + red, so that its penalty is always 0 and its gamma
without effect. ``paper`` is that; the other modes are readings of the prose around it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from budwood_lcqa_selector.parsing import Selection

Mode = Literal["within", "paper", "beyond", "none"]
"""``paper``: coverage up to the limit L = |G| + red, then 0. ``within``: between |G| and L, gamma (|S| - |G|) / L is taken
off. ``beyond``: no cliff at L, but gamma (|S| - L) / L is taken off, down to 0. ``none``: coverage whatever the size."""
MODES: tuple[Mode, ...] = get_args(Mode)
INVALID = -1.0


@dataclass(frozen=True, slots=True)
class Score:
    """``value`` in [-1, 1]; ``coverage`` in [0, 1] and ``over`` (more than L were picked) are those of the evidence set that
    gave it; ``size`` is |S|."""

    value: float
    coverage: float = 0.0
    over: bool = False
    size: int = 0


def score(
    selection: Selection, gold_sets: Sequence[Collection[str]], *, red: int, gamma: float = 0.5, mode: Mode = "within"
) -> Score | None:
    """The best score over the evidence sets; None where there is none to compare with.

    ``red``: passages allowed beyond the evidence. ``gamma`` in [0, 1]: what a passage too many costs, in parts of the limit.
    """
    if not gold_sets:
        return None
    if not selection.valid:
        return Score(INVALID)
    picked = frozenset(selection.ids)
    return max((_against(picked, gold, red, gamma, mode) for gold in gold_sets), key=lambda one: one.value)


def _against(picked: frozenset[str], gold: Collection[str], red: int, gamma: float, mode: Mode) -> Score:
    size, needed = len(picked), len(gold)
    limit = needed + red  # L_i
    # A question that needs no passage is covered by picking none.
    coverage = sum(item in picked for item in gold) / needed if needed else float(size == 0)
    over = size > limit
    value = coverage
    if mode == "beyond" and over:
        value = max(0.0, coverage - gamma * (size - limit) / limit) if limit else 0.0
    elif mode != "none" and over:
        value = 0.0
    elif mode == "within" and size > needed:
        value = coverage - gamma * (size - needed) / limit
    return Score(value, coverage, over, size)

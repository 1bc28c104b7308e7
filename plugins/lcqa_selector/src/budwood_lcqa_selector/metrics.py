"""Numbers of an evaluation, each with how many questions it rests on and a bootstrap interval.

Rewrites of one question share its difficulty, so whole questions (``root_qid``) are drawn, not rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from budwood.api import Array

DRAWS = 2000


@dataclass(frozen=True)
class Evidence:
    """A pick against the gold set it agrees with best."""

    precision: float
    recall: float
    f1: float
    exact: float
    covered: float


def evidence(chosen: Iterable[str], gold_sets: Sequence[Sequence[str]]) -> Evidence:
    """Precision and recall over passage ids, for the gold set with the best F1; ``covered``: any gold set is wholly in
    the pick.

    An empty pick has precision 0, unless the gold set is empty too.
    """
    picked = set(chosen)
    best = max((_against(picked, set(gold)) for gold in gold_sets), key=lambda found: found.f1)
    return replace(best, covered=float(any(picked.issuperset(gold) for gold in gold_sets)))


def _against(picked: set[str], gold: set[str]) -> Evidence:
    hits = len(picked & gold)
    if not picked and not gold:
        return Evidence(1.0, 1.0, 1.0, 1.0, 1.0)
    precision = hits / len(picked) if picked else 0.0
    recall = hits / len(gold) if gold else 1.0
    f1 = 2.0 * hits / (len(picked) + len(gold))
    return Evidence(precision, recall, f1, float(picked == gold), float(gold <= picked))


@dataclass(frozen=True)
class Scored:
    """What was measured on one row; None where a number does not apply to it."""

    qid: str
    root_qid: str
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class Estimate:
    """Mean over ``n`` rows with the central 95 per cent of its bootstrap distribution."""

    mean: float
    low: float
    high: float
    n: int


def summarise(scored: Sequence[Scored], seed: int = 0, draws: int = DRAWS) -> dict[str, Estimate]:
    """An :class:`Estimate` for every number that applies to a row at least; the same for equal rows and seed. A kind of
    malformed choice that one row has is 0 in the others."""
    names = dict.fromkeys(name for row in scored for name in row.values)
    found = {}
    for name in names:
        absent = 0.0 if name.startswith("invalid/") else None
        values = [(row.root_qid, value) for row in scored if (value := row.values.get(name, absent)) is not None]
        if values:
            found[name] = estimate([root for root, _ in values], [value for _, value in values], seed, draws)
    return found


def estimate(
    roots: Sequence[str] | Sequence[int], values: Array | Sequence[float], seed: int = 0, draws: int = DRAWS
) -> Estimate:
    """Mean of ``values`` (n,), or (S, n) of S runs on the same rows, with the interval of a bootstrap over runs and roots.

    A draw takes S runs and R roots with replacement and is sum_s sum_r sum(v_s of r) / (S sum_r count(r)).
    """
    _, group = np.unique(np.asarray(roots), return_inverse=True)
    runs = np.atleast_2d(np.asarray(values, dtype=np.float64))
    sums = np.stack([np.bincount(group, weights=run) for run in runs])  # (S, R)
    counts = np.bincount(group)  # (R,)
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for i in range(draws):
        drawn_runs, drawn = rng.integers(len(sums), size=len(sums)), rng.integers(len(counts), size=len(counts))
        means[i] = sums[np.ix_(drawn_runs, drawn)].sum() / (len(sums) * counts[drawn].sum())
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(sums.sum() / (len(sums) * counts.sum())), float(low), float(high), runs.shape[1])

"""Selectors without training: what a learned picker has to beat, on the same rows, judge and token budget.

A selector is a function of a row. The retrievers behind :func:`topk`, :func:`adaptive_k`, :func:`threshold` and
:func:`mmr` see the question alone. ``budget``: if given, ids are taken in the selector's order while their tokens
fit, so that selectors can be compared at equal cost.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from budwood_lcqa_selector.pooling import within
from budwood_lcqa_selector.records import Choice, PoolRow
from budwood_lcqa_selector.retrieval import Array, Kind, make_index, top

if TYPE_CHECKING:
    from budwood_models import Encoder, Reranker

Selector = Callable[[PoolRow], Choice]
Ranker = Callable[[PoolRow], tuple[Array, Array]]
"""A row of n passages -> (n,) positions, best first, and their scores (n,), falling."""


@dataclass(frozen=True)
class Chosen:
    """The choice of a baseline, best first; always valid."""

    ids: tuple[str, ...]
    error: str | None = None

    @property
    def valid(self) -> bool:
        return self.error is None


def ranker(kind: Kind = "bm25", encoder: Encoder | None = None) -> Ranker:
    def rank(row: PoolRow) -> tuple[Array, Array]:
        scores = make_index(kind, [passage.titled for passage in row.passages], encoder).scores(row.question)
        order = top(scores, len(scores))
        return order, scores[order]

    return rank


def reranker(model: Reranker) -> Ranker:
    """A cross-encoder reads question and passage together: the strongest ranking here, and the dearest."""

    def rank(row: PoolRow) -> tuple[Array, Array]:
        if not row.passages:
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        scores = np.asarray(model.score(row.question, [passage.titled for passage in row.passages]))
        order = top(scores, len(scores))
        return order, scores[order]

    return rank


def topk(k: int, rank: Ranker) -> Selector:
    return lambda row: _chosen(row, rank(row)[0][:k])


def adaptive_k(rank: Ranker, extra: int = 0, head: float = 0.0, tail: float = 0.0) -> Selector:
    """Cut at the largest gap between neighbouring scores (Adaptive-k, Taguchi et al. 2025), then ``extra`` more. Gaps
    in the first ``head`` and last ``tail`` share of the ranking are ignored."""

    def select(row: PoolRow) -> Choice:
        order, scores = rank(row)
        return _chosen(row, order[: largest_gap(scores, head, tail) + extra])

    return select


def largest_gap(scores: Array, head: float = 0.0, tail: float = 0.0) -> int:
    """How many of ``scores`` (n,), falling, stand before the largest gap; the first gap if several are alike. n if n
    < 2."""
    gaps = scores[:-1] - scores[1:]  # (n - 1,)
    first, last = int(head * len(gaps)), len(gaps) - int(tail * len(gaps))
    if first >= last:
        return len(scores)
    return first + int(np.argmax(gaps[first:last])) + 1


def threshold(value: float, rank: Ranker) -> Selector:
    """Every passage that scores at least ``value``, which holds for one ranker and one kind of data: tune it on
    validation rows."""

    def select(row: PoolRow) -> Choice:
        order, scores = rank(row)
        return _chosen(row, order[scores >= value])

    return select


def tuned_threshold(rows: Sequence[PoolRow], rank: Ranker) -> float:
    """The threshold with the best mean evidence F1 on ``rows``, among all scores that occur there."""
    ranked = []
    for row in rows:
        order, scores = rank(row)
        gold = set(row.gold_sets[0]) if row.gold_sets else set()
        ranked.append((scores, np.cumsum([row.passages[i].id in gold for i in order]), len(gold)))
    best, best_f1 = 0.0, -1.0
    for value in sorted({float(score) for scores, _, _ in ranked for score in scores}):
        f1 = 0.0
        for scores, hits, gold_size in ranked:
            size = int((scores >= value).sum())
            f1 += 2.0 * hits[size - 1] / (size + gold_size) if size else 0.0
        if f1 > best_f1:
            best, best_f1 = value, f1
    return best


def mmr(k: int, encoder: Encoder, weight: float = 0.7) -> Selector:
    """Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998): next is the passage with the largest
    weight * cos(passage, question) - (1 - weight) * max over those taken of cos(passage, taken)."""

    def select(row: PoolRow) -> Choice:
        if not row.passages:
            return Chosen(())
        vectors = encoder.encode([passage.titled for passage in row.passages])  # (n, d)
        relevance = vectors @ encoder.encode([row.question])[0]  # (n,)
        closest = np.zeros(len(vectors))  # (n,) cosine to the nearest passage taken
        taken: list[int] = []
        while len(taken) < min(k, len(vectors)):
            value = weight * relevance - (1.0 - weight) * closest
            value[taken] = -np.inf
            best = int(np.argmax(value))
            closest = vectors @ vectors[best] if not taken else np.maximum(closest, vectors @ vectors[best])
            taken.append(best)
        return _chosen(row, taken)

    return select


def full(row: PoolRow) -> Choice:
    """The whole pool, in its order."""
    return Chosen(row.ids)


def oracle(row: PoolRow) -> Choice:
    """The primary gold set, as far as the pool has it: the upper bound. Nothing where gold is unknown."""
    return Chosen(tuple(passage.id for passage in row.chosen(row.gold_sets[0] if row.gold_sets else ())))


def at_random(seed: int, k: int | None = None) -> Selector:
    """``k`` passages, or all, in an order drawn for the question."""

    def select(row: PoolRow) -> Choice:
        ids = list(row.ids)
        random.Random(f"random {seed} {row.qid}").shuffle(ids)
        return Chosen(tuple(ids[:k]))

    return select


def budgeted(select: Selector, budget: int) -> Selector:
    """What ``select`` chooses, in its order, as far as it fits into ``budget`` tokens."""

    def cut(row: PoolRow) -> Choice:
        choice = select(row)
        by_id = {passage.id: passage for passage in row.passages}
        kept = within([by_id[name] for name in choice.ids], budget)
        return Chosen(tuple(passage.id for passage in kept), choice.error)

    return cut


def _chosen(row: PoolRow, positions: Sequence[int] | Array) -> Chosen:
    return Chosen(tuple(row.passages[int(i)].id for i in positions))

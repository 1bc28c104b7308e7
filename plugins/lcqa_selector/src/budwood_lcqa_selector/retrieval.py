"""Which passages look relevant to a query: BM25, embeddings, and both by reciprocal rank.

An index over n texts gives one score a text, higher is more relevant; :func:`top` turns scores into a ranking. What
goes into the query, the question alone or the question with its answer, is the caller's: the two are never mixed
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from budwood_lcqa_selector.text import words

if TYPE_CHECKING:
    from budwood_models import Encoder

Array = NDArray[Any]
Kind = Literal["bm25", "dense", "hybrid"]


class Index(Protocol):
    def scores(self, query: str) -> Array:
        """(n,) float."""


class BM25:
    """Robertson's BM25 with Lucene's inverse document frequency, which is never negative; by bm25s, which scores at
    indexing time.

    Terms are lower-case words, without stemming and with stop words.
    """

    def __init__(self, texts: Sequence[str], k1: float = 1.5, b: float = 0.75) -> None:
        import bm25s

        vocabulary: dict[str, int] = {}
        ids = [[vocabulary.setdefault(word, len(vocabulary)) for word in words(text)] for text in texts]
        self._n, self._vocabulary = len(texts), vocabulary
        self._bm25 = bm25s.BM25(k1=k1, b=b, method="lucene")
        if vocabulary:
            self._bm25.index((ids, vocabulary), show_progress=False)

    def scores(self, query: str) -> Array:
        known = [self._vocabulary[word] for word in words(query) if word in self._vocabulary]
        if not known:
            return np.zeros(self._n, dtype=np.float32)
        scores: Array = self._bm25.get_scores_from_ids(known)
        return scores


class Dense:
    """Cosine of embeddings; (n, d) unit rows are kept in memory."""

    def __init__(self, texts: Sequence[str], encoder: Encoder) -> None:
        self._encoder = encoder
        self.vectors: Array = encoder.encode(list(texts)) if texts else np.zeros((0, 1), dtype=np.float32)

    def scores(self, query: str) -> Array:
        if not len(self.vectors):
            return np.zeros(0, dtype=np.float32)
        scores: Array = self.vectors @ self._encoder.encode([query])[0]
        return scores


class Hybrid:
    """Reciprocal rank fusion (Cormack et al., SIGIR 2009): sum over indexes of 1 / (c + rank), ranks from 1."""

    def __init__(self, indexes: Sequence[Index], c: float = 60.0) -> None:
        self._indexes, self._c = indexes, c

    def scores(self, query: str) -> Array:
        return sum(1.0 / (self._c + ranks(index.scores(query))) for index in self._indexes)  # type: ignore[return-value]


def ranks(scores: Array) -> Array:
    """(n,) int: 1 for the best; of equal scores the earlier text is better."""
    places = np.empty(len(scores), dtype=np.int64)
    places[top(scores, len(scores))] = np.arange(1, len(scores) + 1)
    return places


def top(scores: Array, k: int) -> Array:
    """(min(k, n),) positions, best first, the earlier one first where scores are equal. O(n + k log k)."""
    if k <= 0:
        return np.zeros(0, dtype=np.int64)
    if k >= len(scores):
        return np.argsort(-scores, kind="stable")
    worst = np.partition(scores, len(scores) - k)[len(scores) - k]  # the k-th best score
    above = np.flatnonzero(scores > worst)
    equal = np.flatnonzero(scores == worst)[: k - len(above)]
    found = np.concatenate([above, equal])
    return found[np.argsort(-scores[found], kind="stable")]


def make_index(kind: Kind, texts: Sequence[str], encoder: Encoder | None = None) -> Index:
    """:raises ValueError: for ``dense`` or ``hybrid`` without an encoder."""
    if kind == "bm25":
        return BM25(texts)
    if encoder is None:
        raise ValueError(f"retrieval by {kind!r} needs an encoder")
    dense = Dense(texts, encoder)
    return dense if kind == "dense" else Hybrid([BM25(texts), dense])

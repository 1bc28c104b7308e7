"""What the selector head sees of a pool: overlaps of words, before anything is picked and in the light of what is picked.

Pools of different sizes are padded to k passages. ``idf`` weighs a word by how few passages of its pool have it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from budwood.api import Array
from budwood_lcqa_selector.records import PoolRow
from budwood_lcqa_selector.text import words

PLAIN = ("question", "title in question")
REASONED = ("named by a pick", "names a pick", "still asked", "shares words with a pick")
STOP_PLAIN = ("stop", "stop, a pick more")
STOP_REASONED = ("stop, part of the question covered",)


@dataclass(frozen=True)
class Pools:
    """n pools of at most k passages and q question words, float32. ``real`` (n, k): whether there is such a passage.

    ``plain`` (n, k, 2), see :data:`PLAIN`.  ``has`` (n, k, q): idf of the question's words that a passage has, their sum over
    all words being 1.  ``names`` (n, k, k): part of the title of the second that the first has, without the question's
    words.  ``shares`` (n, k, k): idf-weighted part of the second's words that the first has, likewise.
    """

    real: Array
    plain: Array
    has: Array
    names: Array
    shares: Array

    def __getitem__(self, index: Array) -> Pools:
        return Pools(self.real[index], self.plain[index], self.has[index], self.names[index], self.shares[index])


class Seen:
    """What picks change, kept while they are made: (n, k) maxima over the picks of each pool, (n, q) words they have."""

    def __init__(self, of: Pools) -> None:
        n, k, q = of.has.shape
        self.of = of
        self.named, self.naming, self.shared = (np.zeros((n, k), dtype=np.float32) for _ in range(3))
        self.covered = np.zeros((n, q), dtype=bool)
        self.weights = of.has.max(axis=1)  # (n, q)

    def add(self, pools_: Array, places: Array) -> None:
        """In each of the (m,) pools, the passage at its place (m,) is picked."""
        of = self.of
        self.named[pools_] = np.maximum(self.named[pools_], of.names[pools_, places])
        self.naming[pools_] = np.maximum(self.naming[pools_], of.names[pools_, :, places])
        self.shared[pools_] = np.maximum(self.shared[pools_], of.shares[pools_, places])
        self.covered[pools_] |= of.has[pools_, places] > 0

    def features(self) -> Array:
        """(n, k, 4), see :data:`REASONED`."""
        still = np.einsum("nkq,nq->nk", self.of.has, ~self.covered)
        return np.stack([self.named, self.naming, still, self.shared], axis=2)

    def covered_part(self) -> Array:
        """(n,) part of the question's words, by idf, that the picks have."""
        covered: Array = (self.weights * self.covered).sum(axis=1)
        return covered


def pools(rows: Sequence[PoolRow]) -> Pools:
    described = [_describe(row) for row in rows]
    k = max(1, *(len(item[0]) for item in described)) if described else 1
    q = max((item[1].shape[1] for item in described), default=1)
    n = len(rows)
    real = np.zeros((n, k), dtype=bool)
    plain = np.zeros((n, k, len(PLAIN)), dtype=np.float32)
    has = np.zeros((n, k, q), dtype=np.float32)
    names, shares = (np.zeros((n, k, k), dtype=np.float32) for _ in range(2))
    for i, (features, own, named, shared) in enumerate(described):
        size = len(features)
        real[i, :size], plain[i, :size] = True, features
        has[i, :size, : own.shape[1]] = own
        names[i, :size, :size], shares[i, :size, :size] = named, shared
    return Pools(real, plain, has, names, shares)


def _describe(row: PoolRow) -> tuple[Array, Array, Array, Array]:
    """(k, 2) plain features, (k, q) question words, (k, k) names, (k, k) shares."""
    bags = [frozenset(words(passage.titled)) for passage in row.passages]
    titles = [frozenset(words(passage.title)) for passage in row.passages]
    spread = Counter(word for bag in bags for word in bag)
    k = len(bags)
    idf = {word: log((1 + k) / count) for word, count in spread.items()}
    asked = [word for word in dict.fromkeys(words(row.question)) if word in idf]
    total = sum(idf[word] for word in asked) or 1.0
    own = np.array([[idf[word] / total * (word in bag) for word in asked] for bag in bags]).reshape(k, len(asked))
    question = frozenset(asked)
    in_question = [_part(title, question) for title in titles]
    names = [
        [_part(title - question, bag) if i != j else 0.0 for j, title in enumerate(titles)]
        for i, bag in enumerate(bags)
    ]
    vocabulary = {word: place for place, word in enumerate(spread)}
    weights = np.zeros((k, len(vocabulary)))
    for i, bag in enumerate(bags):
        for word in bag - question:
            weights[i, vocabulary[word]] = idf[word]
    sums = weights.sum(axis=1)
    shares = ((weights > 0).astype(float) @ weights.T) / np.maximum(sums, 1e-9)[None, :]
    np.fill_diagonal(shares, 0.0)
    return np.column_stack([own.sum(axis=1), in_question]), own, np.array(names).reshape(k, k), shares


def _part(of: frozenset[str], inside: frozenset[str]) -> float:
    return len(of & inside) / len(of) if of else 0.0

"""The pool a picker chooses from, and the candidates that mining starts from.

Mining may see the answer and retrieves with it; the pool is what retrieval with the question alone brings, as at test
time. A mined gold passage can therefore be missing from the pool: for training it is put in and recorded, for
evaluation never.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from budwood_lcqa_selector.records import Passage, PoolRow
from budwood_lcqa_selector.retrieval import BM25, Kind, make_index, top

if TYPE_CHECKING:
    from budwood_models import Encoder


@dataclass(frozen=True)
class Pooling:
    """At most ``size`` passages and ``budget`` tokens, the most similar to the question first.

    The paper gives neither number. A passage that does not fit is passed over, and smaller ones after it may still
    come in.
    """

    retriever: Kind = "bm25"
    size: int = 30
    budget: int = 6000
    encoder: Encoder | None = None

    def pool(self, row: PoolRow) -> PoolRow:
        """The row with its pool, best first, and ``pool_recall``; gold sets are as they were, in the pool or not."""
        index = make_index(self.retriever, [passage.titled for passage in row.passages], self.encoder)
        order = top(index.scores(row.question), len(row.passages))
        chosen = within([row.passages[i] for i in order], self.budget)[: self.size]
        found = {passage.id for passage in chosen}
        primary = row.gold_sets[0] if row.gold_sets else ()
        recall = sum(name in found for name in primary) / len(primary) if primary else 1.0
        return row.with_(passages=tuple(chosen), pool_recall=recall, injected_ids=())

    def training_pool(self, row: PoolRow, seed: int = 0) -> PoolRow:
        """:meth:`pool` with what is missing of the primary gold set put in at random places, the same ones for a
        ``seed``. Other gold sets are kept if their passages are all there."""
        pooled = self.pool(row)
        primary = row.gold_sets[0] if row.gold_sets else ()
        missing = [passage for passage in row.chosen(primary) if passage.id not in pooled.ids]
        passages = list(pooled.passages)
        rng = random.Random(f"inject {seed} {row.qid}")
        for passage in missing:
            passages.insert(rng.randint(0, len(passages)), passage)
        there = {passage.id for passage in passages}
        return pooled.with_(
            passages=tuple(passages),
            injected_ids=tuple(passage.id for passage in missing),
            gold_sets=tuple(names for names in row.gold_sets if there.issuperset(names)),
        )


def within(passages: Sequence[Passage], budget: int) -> list[Passage]:
    """In order, those that still fit into ``budget`` tokens."""
    left, found = budget, []
    for passage in passages:
        if passage.n_tokens <= left:
            found.append(passage)
            left -= passage.n_tokens
    return found


def mining_candidates(row: PoolRow, k: int) -> list[int]:
    """Positions of the ``k`` best passages for question and references together, by BM25, best first."""
    index = BM25([passage.titled for passage in row.passages])
    query = " ".join([row.question, *row.answers])
    return [int(i) for i in top(index.scores(query), k)]

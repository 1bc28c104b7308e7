"""Fact chains: the answer follows exactly from the sets that are said to be minimal, checked over all subsets."""

from __future__ import annotations

from itertools import chain, combinations

import pytest

from budwood_lcqa_selector.answering import answer_prompt
from budwood_lcqa_selector.judges import contains
from budwood_lcqa_selector.worlds import SymbolicGenerator, fact_chain


def suffices(row, ids):
    (reply,) = SymbolicGenerator().generate([answer_prompt(row.question, row.chosen(ids))], max_tokens=8)
    return contains(reply.text, row.answers)


def minimal_sets(row):
    """All minimal sufficient sets, by enumeration, smallest first."""
    found = []
    for ids in chain.from_iterable(combinations(row.ids, size) for size in range(len(row.ids) + 1)):
        if not any(smaller <= set(ids) for smaller in found) and suffices(row, ids):
            found.append(set(ids))
    return found


@pytest.mark.parametrize(
    ("hops", "chains", "copies", "sets"),
    [(1, 1, 1, 1), (2, 1, 1, 1), (5, 1, 1, 1), (2, 2, 1, 2), (2, 1, 2, 4), (1, 2, 2, 4), (2, 2, 2, 8)],
)
def test_gold_sets_are_all_minimal_sets(hops, chains, copies, sets):
    for seed in range(5):
        row = fact_chain(seed, hops=hops, chains=chains, copies=copies, pool=9)
        found = {frozenset(ids) for ids in row.gold_sets}
        assert found == {frozenset(ids) for ids in minimal_sets(row)}
        assert len(found) == sets


def test_a_world_depends_on_its_seed_only():
    assert fact_chain(3) == fact_chain(3)
    assert fact_chain(3) != fact_chain(4)
    assert len({fact_chain(seed).question for seed in range(100)}) == 100


def test_distractors_share_entities_and_relations():
    row = fact_chain(0, hops=2, pool=40)
    gold = set(row.gold_sets[0])
    texts = [passage.text for passage in row.passages if passage.id not in gold]
    start = row.question.removesuffix("?").split(" of ")[-1]
    assert any(start in text for text in texts)
    assert len(set(texts)) == len(texts)


def test_no_distractor_adds_another_answer():
    for seed in range(200):
        row = fact_chain(seed, hops=1 + seed % 4, pool=12)
        (reply,) = SymbolicGenerator().generate([answer_prompt(row.question, row.passages)], max_tokens=8)
        assert (reply.text,) == row.answers


def test_gold_stands_in_front_if_asked():
    def mean_place(front):
        rows = [fact_chain(seed, hops=2, pool=50, front=front) for seed in range(100)]
        return sum(row.ids.index(gold) for row in rows for gold in row.gold_sets[0]) / 200

    assert mean_place(front=True) < 14 < 20 < mean_place(front=False) < 29


def test_a_pool_too_small_is_refused():
    with pytest.raises(ValueError, match="4 gold passages do not fit into a pool of 3"):
        fact_chain(0, hops=2, chains=2, pool=3)

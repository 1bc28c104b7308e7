"""Rankings: BM25 against its formula and against published anchors, fusion and ties by hand, pools and chunks."""

from __future__ import annotations

import math
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from budwood_lcqa_selector.baselines import adaptive_k, ranker, topk
from budwood_lcqa_selector.chunking import cut, identity, joined, semantic, window
from budwood_lcqa_selector.loaders import load
from budwood_lcqa_selector.metrics import evidence
from budwood_lcqa_selector.pooling import Pooling, mining_candidates, within
from budwood_lcqa_selector.records import Passage, PoolRow
from budwood_lcqa_selector.retrieval import BM25, Dense, Hybrid, make_index, ranks, top
from budwood_lcqa_selector.text import count_tokens, sentences, words

DATA = Path(os.environ.get("BUDWOOD_DATA", "")) / "lcqa"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="BUDWOOD_DATA names no folder with lcqa/")


class Letters:
    """An encoder of which every cosine can be worked out: how often a, b and c occur, to length 1."""

    identity = {"encoder": "letters"}  # noqa: RUF012

    def encode(self, texts, batch_size=32):
        counts = np.array([[text.count(letter) for letter in "abc"] for text in texts], dtype=np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


def bm25_by_hand(texts, query, k1=1.5, b=0.75):
    """sum over query terms of ln(1 + (n - df + 0.5) / (df + 0.5)) * tf / (tf + k1 (1 - b + b * length / mean length))."""
    docs = [words(text) for text in texts]
    mean_length = sum(map(len, docs)) / len(docs)
    scores = []
    for doc in docs:
        score = 0.0
        for term in words(query):
            df = sum(term in other for other in docs)
            tf = doc.count(term)
            idf = math.log(1 + (len(docs) - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + k1 * (1 - b + b * len(doc) / mean_length))
        scores.append(score)
    return scores


TEXTS = [
    "The cat sat on the mat.",
    "A dog!",
    "Cats and dogs; the cat again, the cat.",
    "",
    "北京是首都",
    "Über-café 🎉",
]


@pytest.mark.parametrize("query", ["the cat", "dog", "cat cat dog", "首都 北京", "café", "CAT?", "🎉", "nowhere", ""])
def test_bm25_is_its_formula(query):
    assert BM25(TEXTS).scores(query) == pytest.approx(bm25_by_hand(TEXTS, query), abs=1e-5)


def test_nothing_to_index():
    assert BM25([]).scores("x").shape == (0,)
    assert BM25(["", "🎉"]).scores("x").tolist() == [0.0, 0.0]
    assert Dense([], Letters()).scores("x").shape == (0,)
    with pytest.raises(ValueError, match="needs an encoder"):
        make_index("hybrid", ["a"])


ANCHORS = {  # file: rows, recall@2, recall@5, all gold in top 2, in top 5; Adaptive-k: mean size, recall, precision
    "hotpotqa_distractor_100.jsonl": (100, 0.605, 0.810, 0.28, 0.62, 2.22, 0.625, 0.749),
    "ircot_hotpotqa.jsonl": (26, 0.654, 0.904, 0.385, 0.846, 2.19, 0.673, 0.762),
}


@needs_data
@pytest.mark.parametrize("file", ANCHORS)
def test_bm25_anchors(file):
    """Measured with terms [a-z0-9]+; ours keep letters with accents, which moves Adaptive-k's mean size by 0.03."""
    rows = list(load(DATA / file, "shipped"))
    n, recall2, recall5, all2, all5, size, recall, precision = ANCHORS[file]
    rank = ranker("bm25")
    assert len(rows) == n
    for select, wanted in ((topk(2, rank), (recall2, all2)), (topk(5, rank), (recall5, all5))):
        found = [evidence(select(row).ids, row.gold_sets) for row in rows]
        got = np.mean([one.recall for one in found]), np.mean([one.covered for one in found])
        assert got == pytest.approx(wanted, abs=6e-4)
    choices = [adaptive_k(rank)(row).ids for row in rows]
    found = [evidence(ids, row.gold_sets) for ids, row in zip(choices, rows, strict=True)]
    assert np.mean([len(ids) for ids in choices]) == pytest.approx(size, abs=0.035)
    assert np.mean([one.recall for one in found]) == pytest.approx(recall, abs=0.006)
    assert np.mean([one.precision for one in found]) == pytest.approx(precision, abs=0.001)


def test_dense_is_the_cosine_and_hybrid_the_sum_of_reciprocal_ranks():
    texts = ["aab", "abb", "c", "aaa"]
    dense = Dense(texts, Letters())
    assert dense.scores("a") == pytest.approx([2 / 5**0.5, 1 / 5**0.5, 0.0, 1.0])

    class Fixed:
        def __init__(self, *scores):
            self.found = np.array(scores)

        def scores(self, query):
            return self.found

    fused = Hybrid([Fixed(3.0, 2.0, 1.0), Fixed(0.0, 5.0, 5.0)]).scores("?")
    assert fused == pytest.approx([1 / 61 + 1 / 63, 1 / 62 + 1 / 61, 1 / 63 + 1 / 62])


@given(st.lists(st.integers(-3, 3), max_size=30), st.integers(0, 35))
def test_top_is_a_stable_sort_cut_off(values, k):
    scores = np.array(values, dtype=np.float32)
    expected = sorted(range(len(values)), key=lambda i: -values[i])
    assert top(scores, k).tolist() == expected[:k]
    assert [expected[rank - 1] for rank in ranks(scores)] == list(range(len(values)))


# ---- pools -----------------------------------------------------------------------------------------------------------


def row(*texts, **changes):
    passages = tuple(Passage(id=f"p{i}", text=text) for i, text in enumerate(texts))
    return PoolRow(**{"qid": "q", "question": "which cat", "answers": ("dog",), "passages": passages, **changes})


def test_a_pool_is_ranked_by_the_question_alone_and_bounded():
    pooled = Pooling(size=2).pool(row("a dog", "the cat", "cat cat", "a cow", gold_sets=(("p0", "p1"),)))
    assert pooled.ids == ("p2", "p1")
    assert pooled.pool_recall == 0.5
    assert pooled.gold_sets == (("p0", "p1"),)
    assert mining_candidates(row("a cow", "a dog", "the cat"), 2) in ([1, 2], [2, 1])
    assert mining_candidates(row(), 5) == []


def test_a_budget_passes_over_what_does_not_fit():
    big = Passage(id="big", text="cat " * 50)
    small = [Passage(id=f"s{i}", text="cat sat") for i in range(3)]
    assert [passage.id for passage in within([small[0], big, *small[1:]], 6)] == ["s0", "s1", "s2"]
    assert within([big], 49) == []
    million = row("cat " * 250_000, "the cat")
    assert Pooling().pool(million).ids == ("p1",)
    assert Pooling(budget=10**6).pool(million).ids == ("p0", "p1")


def test_missing_gold_is_put_in_for_training_only():
    source = row("a dog", "the cat", "cat cat", "a cow", gold_sets=(("p0", "p1"), ("p3",), ("p2",)))
    pooling = Pooling(size=2)
    trained = pooling.training_pool(source)
    assert sorted(trained.ids) == ["p0", "p1", "p2"]
    assert trained.injected_ids == ("p0",)
    assert trained.gold_sets == (("p0", "p1"), ("p2",)), "the set whose passage is not there is gone"
    assert trained.pool_recall == 0.5
    assert trained == pooling.training_pool(source)
    places = {pooling.training_pool(source, seed).ids.index("p0") for seed in range(20)}
    assert places == {0, 1, 2}


# ---- chunks ----------------------------------------------------------------------------------------------------------


@given(st.text(alphabet="ab.!? \n。é🎉", max_size=80), st.integers(1, 7), st.integers(0, 6))
def test_windows_hold_every_token_in_order(text, size, overlap):
    if overlap >= size:
        with pytest.raises(ValueError, match="overlap"):
            window(size, overlap)
        return
    spans = window(size, overlap)(text)
    assert all(1 <= count_tokens(text[start:end]) <= size for start, end in spans)
    assert bool(spans) == bool(count_tokens(text))
    covered = {i for start, end in spans for i in range(start, end)}
    assert all(i in covered or text[i].isspace() for i in range(len(text)))
    if overlap == 0:
        assert all(first[1] <= second[0] for first, second in pairwise(spans))


@given(st.text(alphabet="abc. \n", max_size=120), st.integers(0, 5), st.integers(6, 12))
def test_semantic_chunks_partition_the_text(text, small, big):
    spans = semantic(Letters(), 0.5, small, big)(text)
    assert all(first[1] <= second[0] for first, second in pairwise(spans))
    assert "".join(text[start:end] for start, end in spans).split() or not text.split()
    assert sum(count_tokens(text[start:end]) for start, end in spans) == count_tokens(text)
    assert all(count_tokens(text[start:end]) <= big for start, end in spans)


def test_a_chunk_ends_where_the_meaning_turns():
    text = "aa. aa. bb. bb."
    chunk = semantic(Letters(), 0.5, 1, 100)
    assert [text[start:end] for start, end in chunk(text)] == ["aa. aa.", "bb. bb."]
    turns = "aa. bb. cc. cc."
    assert [turns[start:end] for start, end in semantic(Letters(), 0.5, 4, 100)(turns)] == ["aa. bb.", "cc. cc."]
    assert [text[start:end] for start, end in semantic(Letters(), 0.5, 1, 2)(text)] == ["aa.", "aa.", "bb.", "bb."]
    assert chunk("") == []
    assert joined([(0, 1), (1, 2)], [9, 1], [True], 1, 9) == [(0, 1), (1, 2)]


def test_passages_are_cut_and_say_where_they_come_from():
    passages = [
        Passage(id="d", title="T", text="one two three four"),
        Passage(id="e", text="five"),
        Passage(id="f", text=" "),
    ]
    found = cut(passages, window(3))
    assert [(p.id, p.title, p.text, p.source_span) for p in found] == [
        ("d.1", "T", "one two three", (0, 13)),
        ("d.2", "T", "four", (14, 18)),
        ("e", "", "five", (0, 4)),
    ]
    assert [p.id for p in cut(passages, identity)] == ["d", "e"]


def test_text_without_any_end_is_cut_in_linear_time():
    for text in ("x" * 10**6, "." * 10**5, "字\n" * 10**5):
        assert len(window()(text)) <= 400
        assert sum(map(len, sentences(text))) <= 10**6


def test_words_of_any_script():
    assert words("Über-Café 2nd_try! 北京 カナ 서울 🎉") == [
        "über",
        "café",
        "2nd",
        "try",
        "北",
        "京",
        "カ",
        "ナ",
        "서",
        "울",
    ]
    assert sentences("One. Two!  三。四？Five\nsix 3.5 v.") == ["One.", "Two!", "三。", "四？", "Five", "six 3.5 v."]  # noqa: RUF001

"""Baselines by hand-made scores, metrics against closed forms, evaluation with a real answerer."""

from __future__ import annotations

import numpy as np
import pytest

from budwood.api import BudwoodError
from budwood_lcqa_selector import baselines
from budwood_lcqa_selector.answer_cache import AnswerCache
from budwood_lcqa_selector.asking import Asker
from budwood_lcqa_selector.baselines import Chosen, largest_gap
from budwood_lcqa_selector.evaluation import score
from budwood_lcqa_selector.judges import Contains, Judge, Verdict
from budwood_lcqa_selector.methods import MAKERS, USAGE, Methods, Remembering
from budwood_lcqa_selector.metrics import Scored, estimate, evidence, summarise
from budwood_lcqa_selector.records import Passage, PoolRow
from budwood_lcqa_selector.worlds import SymbolicGenerator, fact_chain


class Letters:
    dimension = 3

    def encode(self, texts, batch_size=32):
        counts = np.array([[text.count(letter) for letter in "abc"] for text in texts], dtype=np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


class Lengths:
    """A reranker that likes long texts."""

    def score(self, query, texts):
        return np.array([len(text) for text in texts], dtype=np.float32)


def row(*texts, question="a", gold=()):
    passages = tuple(Passage(id=f"p{i}", text=text) for i, text in enumerate(texts))
    return PoolRow(qid="q", question=question, answers=("x",), passages=passages, gold_sets=(gold,) if gold else ())


EMPTY = row()


def test_largest_gap():
    assert largest_gap(np.array([9.0, 8.0, 2.0, 1.0])) == 2
    assert largest_gap(np.array([9.0, 5.0, 1.0])) == 1
    assert largest_gap(np.array([9.0, 1.0, 0.9, 0.2, 0.1]), head=0.25) == 3
    assert largest_gap(np.array([9.0, 8.9, 8.0, 7.9, 0.0]), tail=0.25) == 2
    assert [largest_gap(np.zeros(n)) for n in (0, 1, 3)] == [0, 1, 1]


def test_each_baseline_by_hand():
    five = row("b", "a a", "a b", "c c c c", "a", question="a", gold=("p1", "p4"))
    rank = baselines.reranker(Lengths())
    assert baselines.topk(2, rank)(five).ids == ("p3", "p1")
    assert baselines.adaptive_k(rank)(five).ids == ("p3",)
    assert baselines.adaptive_k(rank, extra=1)(five).ids == ("p3", "p1")
    assert baselines.threshold(3.0, rank)(five).ids == ("p3", "p1", "p2")
    assert baselines.full(five).ids == five.ids
    assert baselines.oracle(five).ids == ("p1", "p4")
    assert baselines.oracle(row("a")).ids == ()
    assert set(baselines.at_random(0)(five).ids) == set(five.ids)
    assert baselines.at_random(0, 2)(five) == baselines.at_random(0, 2)(five)
    assert len({baselines.at_random(seed)(five).ids for seed in range(20)}) > 10
    assert baselines.budgeted(baselines.topk(5, rank), 3)(five).ids == ("p1", "p0")
    dense = baselines.ranker("dense", Letters())
    assert baselines.topk(3, dense)(five).ids == ("p1", "p4", "p2")
    assert baselines.tuned_threshold([five], dense) == pytest.approx(1.0)
    for select in (baselines.topk(2, rank), baselines.adaptive_k(dense), baselines.mmr(2, Letters()), baselines.full):
        assert select(EMPTY).ids == ()


def test_mmr_trades_relevance_for_novelty():
    pool = row("aaa", "aa", "ab", "b", question="a")
    assert baselines.mmr(3, Letters(), weight=1.0)(pool).ids == ("p0", "p1", "p2")
    # After p0: p1 is worth .5 * 1 - .5 * 1, p2 .5 * .707 - .5 * .707, p3 .5 * 0 - .5 * 0: equal, so in order; at .4 p3 leads.
    assert baselines.mmr(2, Letters(), weight=0.4)(pool).ids == ("p0", "p3")


def test_methods_by_name():
    methods = Methods(seed=3)
    methods.__dict__.update(encoder=Letters(), reranker=Lengths())
    pool = row("b", "a a", "a b", "c c c c", question="a", gold=("p1",))
    assert set(USAGE) == set(MAKERS)
    for text in ("bm25:2", "dense:2", "hybrid:2", "cross_encoder:2", "mmr:2", "random:2"):
        assert len(methods.make(text)(pool).ids) == 2, text
        assert len(methods.make(text.partition(":")[0])(pool).ids) == 4
    assert methods.make("cross_encoder:1")(pool).ids == ("p3",)
    assert methods.make("oracle")(pool).ids == ("p1",)
    assert methods.make("adaptive_k:cross_encoder")(pool).ids == ("p3",)
    assert methods.make("threshold:0.01")(pool).ids == ("p1", "p2")
    methods.validation = [pool]
    assert methods.make("threshold")(pool).ids == ("p1",)
    for wrong, said in {
        "bm52": "Choose among bm25:K",
        "bm25:0": "no number of passages",
        "bm25:x": "Write bm25:K",
        "full:3": "takes no argument",
        "adaptive_k:magic": "ranks nothing",
        "threshold:high": "could not convert",
    }.items():
        with pytest.raises(BudwoodError, match=said):
            methods.make(wrong)
    with pytest.raises(BudwoodError, match="tuned on the rows of --validation"):
        Methods().make("threshold")


def test_no_text_is_encoded_twice():
    asked = []

    class Counting(Letters):
        def encode(self, texts, batch_size=32):
            asked.extend(texts)
            return super().encode(texts)

    encoder = Remembering(Counting())
    for texts in (["a", "ab", "a"], ["ab", "c"], ["c"]):
        assert encoder.encode(texts).tolist() == Letters().encode(texts).tolist()
    assert asked == ["a", "ab", "c"]


# ---- metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("picked", "gold", "numbers"),
    [
        ("ab", ["ab"], (1, 1, 1, 1, 1)),
        ("abcd", ["ab"], (0.5, 1, 2 / 3, 0, 1)),
        ("a", ["ab"], (1, 0.5, 2 / 3, 0, 0)),
        ("cd", ["ab"], (0, 0, 0, 0, 0)),
        ("", ["ab"], (0, 0, 0, 0, 0)),
        ("", [""], (1, 1, 1, 1, 1)),
        ("a", [""], (0, 1, 0, 0, 1)),
        ("cd", ["ab", "c", "cde"], (1, 2 / 3, 0.8, 0, 1)),
        ("cd", ["ab", "cde"], (1, 2 / 3, 0.8, 0, 0)),
    ],
)
def test_evidence(picked, gold, numbers):
    found = evidence(picked, gold)
    assert (found.precision, found.recall, found.f1, found.exact, found.covered) == pytest.approx(numbers)


def test_an_interval_of_independent_questions_is_that_of_their_mean():
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 2.0, size=400)
    found = estimate([str(i) for i in range(400)], values.tolist())
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_rewrites_do_not_narrow_an_interval():
    rng = np.random.default_rng(1)
    values = rng.normal(size=100)
    alone = estimate([str(i) for i in range(100)], values.tolist())
    copied = estimate([str(i) for i in range(100) for _ in range(6)], np.repeat(values, 6).tolist())
    assert (copied.mean, copied.low, copied.high) == pytest.approx((alone.mean, alone.low, alone.high))
    assert copied.n == 600


def test_runs_and_questions_are_drawn_alike():
    """a_s + b_q: the variance of the mean is that of a over S plus that of b over Q, as for two samples drawn apart."""
    rng = np.random.default_rng(2)
    runs, questions = rng.normal(size=30), 2 * rng.normal(size=200)
    found = estimate(range(200), runs[:, None] + questions)
    half = 1.96 * (runs.var() / 30 + questions.var() / 200) ** 0.5
    assert found.mean == pytest.approx(runs.mean() + questions.mean())
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.03)
    assert found.n == 200


def test_a_summary_is_seeded_and_leaves_out_what_does_not_apply():
    rows = [Scored(str(i), str(i), {"a": i**0.5, "b": None if i else 1.0}) for i in range(50)]
    assert summarise(rows) == summarise(rows)
    assert summarise(rows) != summarise(rows, seed=1)
    assert summarise(rows)["b"].n == 1
    assert summarise([]) == {}


# ---- evaluation ------------------------------------------------------------------------------------------------------


def asker(judge=None):
    return Asker(SymbolicGenerator(), judge or Contains(), AnswerCache(None))


def test_a_picker_is_right_if_and_only_if_it_covers_the_chain():
    rows = [fact_chain(seed, hops=2, pool=8) for seed in range(60)]
    for select in (baselines.oracle, baselines.full, baselines.at_random(0, 4)):
        for found in score(rows, select, asker()):
            assert found.values["accuracy"] == found.values["covered"] == found.values["em"]
    results = summarise(list(score(rows, baselines.oracle, asker())))
    assert (results["accuracy"].mean, results["exact_set"].mean, results["size"].mean) == (1.0, 1.0, 2.0)
    everything = summarise(list(score(rows, baselines.full, asker())))
    assert (everything["kept"].mean, everything["over_select"].mean) == (1.0, 1.0)
    assert everything["evidence_precision"].mean == pytest.approx(0.25)


def test_a_malformed_choice_counts_as_empty_by_its_kind():
    rows = [fact_chain(seed) for seed in range(4)]

    def broken(row):
        return Chosen(row.ids, error="bad_json" if row.qid == "chain-0" else None)

    first, *others = score(rows, broken, asker())
    assert (first.values["invalid"], first.values["invalid/bad_json"], first.values["size"]) == (1.0, 1.0, 0.0)
    assert (first.values["accuracy"], first.values["evidence_f1"]) == (0.0, 0.0)
    assert all(other.values["accuracy"] == 1.0 and other.values["invalid"] == 0.0 for other in others)
    share = summarise([first, *others])["invalid/bad_json"]
    assert (share.mean, share.n) == (0.25, 4)


class Silent(Judge):
    identity = {"judge": "silent"}  # noqa: RUF012

    def score_all(self, answered):
        return [Verdict(None) for _ in answered]


def test_without_a_verdict_there_is_no_accuracy():
    (found,) = score([fact_chain(0)], baselines.full, asker(Silent()))
    assert found.values["no_verdict"] == 1.0
    assert "accuracy" not in found.values


def test_without_gold_or_answers_only_sizes_are_measured():
    (found,) = score([row("a", "b")], baselines.full)
    assert set(found.values) == {"size", "tokens", "kept", "invalid", "select_s"}
    (nothing,) = score([EMPTY], baselines.full)
    assert nothing.values["kept"] is None

"""The selector head: its features by hand, its gradient against differences, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest

from budwood.api import BudwoodError
from budwood_lcqa_selector import evaluation
from budwood_lcqa_selector.head import SelectorHead, answer
from budwood_lcqa_selector.head_features import Seen, pools
from budwood_lcqa_selector.head_training import Data, Training, group_advantages, train
from budwood_lcqa_selector.methods import Methods
from budwood_lcqa_selector.parsing import parse
from budwood_lcqa_selector.records import Passage, PoolRow
from budwood_lcqa_selector.stages import PRECISION
from budwood_lcqa_selector.worlds import fact_chain


def row(question: str, *passages: tuple[str, str]) -> PoolRow:
    made = tuple(Passage(id=f"p{i}", title=title, text=text) for i, (title, text) in enumerate(passages, 1))
    return PoolRow(qid="q", question=question, answers=("x",), passages=made, gold_sets=(("p1",),))


def test_features_by_hand():
    """Two passages: idf is log 3 for a word of one of them, log 1.5 for a word of both."""
    of = pools([row("Where does Ann work", ("Ann", "Ann works at Bolt"), ("Bolt", "Bolt sits at Oslo"))])
    one, both = np.log(3), np.log(1.5)
    assert of.plain[0] == pytest.approx(np.array([[1, 1], [0, 0]])), (
        "'ann' is the only word of the question that occurs"
    )
    assert of.names[0] == pytest.approx(np.array([[0, 1], [0, 0]])), "the first names the second's title"
    # words without 'ann': {works, at, bolt} and {bolt, sits, at, oslo}; 'at' and 'bolt' are in both
    assert of.shares[0, 0, 1] == pytest.approx(2 * both / (2 * both + 2 * one))
    assert of.shares[0, 1, 0] == pytest.approx(2 * both / (2 * both + one))
    seen = Seen(of)
    assert seen.features()[0] == pytest.approx(np.array([[0, 0, 1, 0], [0, 0, 0, 0]]))
    seen.add(np.array([0]), np.array([0]))
    assert seen.features()[0, 1] == pytest.approx([1, 0, 0, of.shares[0, 0, 1]])
    assert seen.covered_part() == pytest.approx([1])


def test_padding_changes_nothing():
    """A pool beside a larger one gives the picks that it gives alone."""
    small, large = fact_chain(1, pool=4), fact_chain(2, pool=12)
    head = SelectorHead(np.random.default_rng(0).standard_normal(len(SelectorHead.names(True))) * 3)
    together = head.pick(pools([small, large])).order
    assert together == [head.pick(pools([one])).order[0] for one in (small, large)]


@pytest.mark.parametrize("rationale", [True, False])
def test_score_is_the_gradient_of_the_log_probability(rationale):
    of = pools([fact_chain(5, pool=6)])
    weights = np.random.default_rng(1).standard_normal(len(SelectorHead.names(rationale)))
    picks = SelectorHead(weights, rationale).pick(of, np.random.default_rng(2))

    def log_probability(at: np.ndarray) -> float:
        head, seen, total = SelectorHead(at, rationale), Seen(of), 0.0
        picked = np.zeros(of.real.shape, dtype=bool)
        for place in [*picks.order[0], 6][:6]:
            logits = (head._features(seen, picked) @ at)[0]
            logits[:6][picked[0]] = -np.inf
            total += logits[place] - np.log(np.exp(logits).sum())
            if place < 6:
                picked[0, place] = True
                seen.add(np.array([0]), np.array([place]))
        return float(total)

    step = 1e-5
    for i, found in enumerate(picks.score[0]):
        aside = np.zeros_like(weights)
        aside[i] = step
        difference = (log_probability(weights + aside) - log_probability(weights - aside)) / (2 * step)
        assert found == pytest.approx(difference, abs=1e-5)


def test_group_advantages():
    advantages, flat = group_advantages(np.array([0.0, 1.0, 0.5, 0.5]), 2)
    assert advantages == pytest.approx([-0.5 / (0.5**0.5 + 1e-4), 0.5 / (0.5**0.5 + 1e-4), 0, 0])
    assert flat == 0.5


def test_answers_are_in_the_pickers_own_form():
    found = parse(answer((2, 0), chain := fact_chain(0, pool=4)), ["p1", "p2", "p3", "p4"])
    assert found.ids == ("p3", "p1")
    assert chain.passages[2].title in found.rationale


def test_an_empty_pool():
    assert SelectorHead.fresh().choose(PoolRow(qid="q", question="?", answers=(), passages=())).ids == ()


def test_it_learns_two_hops_only_in_the_light_of_its_picks():
    """With what picks say, nearly all evidence; without, the second hop stays a guess."""
    rows = [fact_chain(seed, hops=2, pool=6) for seed in range(260)]
    data, test = Data(rows[:160]), rows[160:]
    f1 = {}
    for rationale in (True, False):
        head = SelectorHead.fresh(rationale)
        course = train(head, data, data, Training(stages=(PRECISION,), steps=120, questions=16), seed=0)
        f1[rationale] = np.mean([evaluation.picked(row, head.choose(row))["evidence_f1"] for row in test])
        assert (
            np.mean([step[2] for step in course.steps[-20:]]) > np.mean([step[2] for step in course.steps[:20]]) + 0.2
        )
    assert f1[True] > 0.9
    assert f1[True] > f1[False] + 0.15


def test_training_is_reproducible():
    rows = [fact_chain(seed, pool=5) for seed in range(20)]
    heads = [SelectorHead.fresh() for _ in range(2)]
    for head in heads:
        train(head, Data(rows), Data(rows), Training(stages=(PRECISION,), steps=5, questions=4), seed=3)
    assert heads[0].weights.tolist() == heads[1].weights.tolist()


def test_a_trained_head_is_evaluated_beside_the_baselines(tmp_path):
    SelectorHead.fresh().save(tmp_path / "head.safetensors")
    select = Methods().make(f"head:{tmp_path / 'head.safetensors'}")
    assert set(select(fact_chain(0, pool=4)).ids) == {"p1", "p2", "p3", "p4"}
    with pytest.raises(BudwoodError, match="no selector head"):
        Methods().make(f"head:{tmp_path / 'none.json'}")


def test_the_order_of_a_pool_does_not_matter():
    """Same questions, passages in another order: the same passages for at least 95 in 100."""
    head = SelectorHead(np.array([6.0, 2, 10, -4, 11, 1, 2, 1, 8]))
    rows = [fact_chain(seed, hops=1 + seed % 3, pool=10) for seed in range(100)]
    turned = [row.with_(passages=row.passages[::-1]) for row in rows]
    same = [set(head.choose(a).ids) == set(head.choose(b).ids) for a, b in zip(rows, turned, strict=True)]
    assert np.mean(same) >= 0.95

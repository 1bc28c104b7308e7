"""The reward against the table of readings, and what must hold whatever is picked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budwood_lcqa_selector.parsing import Selection
from budwood_lcqa_selector.reward import MODES, score

GOLD = ("a", "b")
# (hits, size) of a pick -> paper red 4, within red 4, paper red 1, within red 1, beyond red 1; |G| = 2, gamma 0.5
TABLE = {
    (2, 2): (1, 1, 1, 1, 1),
    (2, 3): (1, 1 - 0.5 * 1 / 6, 1, 1 - 0.5 * 1 / 3, 1),
    (2, 4): (1, 1 - 0.5 * 2 / 6, 0, 0, 1 - 0.5 * 1 / 3),
    (2, 7): (0, 0, 0, 0, 1 - 0.5 * 4 / 3),
    (1, 1): (0.5, 0.5, 0.5, 0.5, 0.5),
    (1, 3): (0.5, 0.5 - 0.5 * 1 / 6, 0.5, 0.5 - 0.5 * 1 / 3, 0.5),
    (0, 0): (0, 0, 0, 0, 0),
}
COLUMNS = (("paper", 4), ("within", 4), ("paper", 1), ("within", 1), ("beyond", 1))


def pick(hits: int, size: int) -> Selection:
    return Selection((*GOLD[:hits], *(f"x{i}" for i in range(size - hits))))


def value(selection, gold_sets=(GOLD,), **options):
    found = score(selection, gold_sets, **options)
    assert found is not None
    return found.value


@pytest.mark.parametrize(("counts", "expected"), TABLE.items(), ids=str)
def test_table_of_readings(counts, expected):
    found = [value(pick(*counts), red=red, gamma=0.5, mode=mode) for mode, red in COLUMNS]
    assert found == pytest.approx(expected, abs=1e-12)
    assert value(pick(*counts), red=1, mode="none") == counts[0] / 2


@pytest.mark.parametrize("mode", MODES)
def test_malformed_is_minus_one(mode):
    assert value(Selection((), error="bad_json"), red=1, mode=mode) == -1


def test_without_evidence_there_is_no_score():
    assert score(pick(1, 1), (), red=1) is None
    assert score(Selection((), error="no_json"), (), red=1) is None


@pytest.mark.parametrize("mode", MODES)
def test_a_question_that_needs_no_passage(mode):
    for red in (0, 1):
        assert value(Selection(()), [()], red=red, mode=mode) == 1
        assert value(Selection(("a",)), [()], red=red, mode=mode) <= 0


def test_printed_penalty_has_no_effect():
    """Eq. 8 as printed: gamma changes nothing, for any pick."""
    for hits in range(3):
        for size in range(hits, 9):
            printed = {value(pick(hits, size), red=3, gamma=gamma, mode="paper") for gamma in (0.0, 0.5, 1.0)}
            assert len(printed) == 1


items = st.sampled_from("abcdefgh")
picks = st.lists(items, unique=True).map(lambda ids: Selection(tuple(ids)))
sets = st.lists(st.lists(items, unique=True, max_size=4).map(tuple), min_size=1, max_size=3)
options = st.fixed_dictionaries({"red": st.integers(0, 5), "gamma": st.floats(0, 1), "mode": st.sampled_from(MODES)})


@given(picks, sets, options)
def test_range(picked, gold_sets, given_options):
    assert -1 <= value(picked, gold_sets, **given_options) <= 1


@given(picks, sets, options, st.randoms(use_true_random=False))
def test_order_does_not_matter(picked, gold_sets, given_options, random):
    shuffled = Selection(tuple(random.sample(picked.ids, len(picked.ids))))
    turned = [tuple(random.sample(gold, len(gold))) for gold in gold_sets]
    assert value(picked, gold_sets, **given_options) == value(shuffled, turned, **given_options)


@given(picks, sets, options)
def test_several_sets_give_the_best(picked, gold_sets, given_options):
    best = max(value(picked, [gold], **given_options) for gold in gold_sets)
    assert value(picked, gold_sets, **given_options) == best


@given(picks, st.lists(items, unique=True, min_size=1, max_size=4).map(tuple), options)
def test_evidence_within_the_limit_never_costs(picked, gold, given_options):
    missing = [item for item in gold if item not in picked.ids]
    if missing and len(picked.ids) < len(gold) + given_options["red"]:
        more = Selection((*picked.ids, missing[0]))
        assert value(more, [gold], **given_options) >= value(picked, [gold], **given_options) - 1e-12


@given(picks, sets, st.integers(0, 5), st.floats(0, 1))
def test_within_is_at_most_as_printed(picked, gold_sets, red, gamma):
    within = value(picked, gold_sets, red=red, gamma=gamma, mode="within")
    assert within <= value(picked, gold_sets, red=red, gamma=gamma, mode="paper")


@given(st.integers(1, 4), st.integers(0, 5), st.floats(0, 1), st.integers(1, 9))
def test_covering_within_the_margin_beats_too_many(needed, red, gamma, more):
    gold = tuple(f"g{i}" for i in range(needed))
    spare = tuple(f"x{i}" for i in range(red + more))
    full = value(Selection((*gold, *spare[:red])), [gold], red=red, gamma=gamma)
    assert full > value(Selection((*gold, *spare)), [gold], red=red, gamma=gamma) == 0

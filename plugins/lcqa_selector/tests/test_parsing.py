"""Every way in which an answer can be malformed, by hand and by fuzzing."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budwood_lcqa_selector.parsing import MALFORMED, parse

POOL = ("p1", "p2", "p3", "4")

VALID = {
    '{"rationale": "p1 says so", "ids": ["p1"]}': ("p1",),
    '{"ids": ["p2", "p1"]}': ("p2", "p1"),
    '{"rationale": "nothing helps", "ids": []}': (),
    '  \n{"rationale": "", "ids": ["p3"]}\n\n': ("p3",),
    '{"ids": ["p1"], "rationale": "after"}': ("p1",),
    '{"ids": [4]}': ("4",),
    '{"rationale": "a } and a { and a \\" in it", "ids": ["p1"]}': ("p1",),
    '{"rationale": ["a", "list"], "ids": ["p1"]}': ("p1",),
    '{"rationale": "für München 😀", "ids": ["p1"]}': ("p1",),
    '{"rationale": "half of \\ud83d", "ids": ["p1"]}': ("p1",),
    '{"extra": {"deep": {}}, "ids": ["p1"]}': ("p1",),
    '{"rationale": null, "ids": ["p1"]}': ("p1",),
}
INVALID = {
    "": "no_json",
    "   ": "no_json",
    "p1 and p2": "no_json",
    '["p1"]': "no_json",
    '"p1"': "no_json",
    "}": "no_json",
    'Sure! {"ids": ["p1"]}': "leading_text",
    '```json\n{"ids": ["p1"]}\n```': "leading_text",
    '<think>so</think>{"ids": ["p1"]}': "leading_text",
    "p1 {": "leading_text",
    "{}{": "trailing_text",
    '{"ids": ["p1"]} done': "trailing_text",
    '{"ids": ["p1"]}{"ids": ["p2"]}': "trailing_text",
    '{"ids": ["p1"]}}': "trailing_text",
    '{"ids": ["p1"]}\n```': "trailing_text",
    "{": "truncated",
    '{"rationale": "p1 names the': "truncated",
    '{"rationale": "p1 } {", "ids": ["p1"': "truncated",
    '{"ids": ["p1"]': "truncated",
    '{"rationale": "a\\': "truncated",
    '{"rationale": "a\\"}': "truncated",
    '{"rationale": {"a": 1}': "truncated",
    "{{": "truncated",
    "{'ids': ['p1']}": "bad_json",
    "{ids: [p1]}": "bad_json",
    '{"ids": ["p1",]}': "bad_json",
    '{"ids": ["p1"] "rationale": ""}': "bad_json",
    '{"ids": [p1]}': "bad_json",
    '{"rationale": "line\nbreak", "ids": ["p1"]}': "bad_json",
    "{}": "missing_ids",
    '{"rationale": "p1"}': "missing_ids",
    '{"ids": "p1"}': "missing_ids",
    '{"ids": null}': "missing_ids",
    '{"ids": {"p1": true}}': "missing_ids",
    '{"ids": [true]}': "missing_ids",
    '{"ids": [4.0]}': "missing_ids",
    '{"ids": [["p1"]]}': "missing_ids",
    '{"ids": [null]}': "missing_ids",
    '{"IDs": ["p1"]}': "missing_ids",
    '{"ids": ["p9"]}': "unknown_id",
    '{"ids": ["P1"]}': "unknown_id",
    '{"ids": [1]}': "unknown_id",
    '{"ids": [" p1"]}': "unknown_id",
    '{"ids": ["p1", "p1"]}': "duplicate_id",
    '{"ids": [4, "4"]}': "duplicate_id",
}
THINKING = {
    'Let me think {about} "it.\n{"ids": ["p1"]}': ("p1",),
    '{"ids": ["p1"]} no, better: {"rationale": "x", "ids": ["p2"]}': ("p2",),
    'a { b {"ids": ["p1"]}': ("p1",),
    '```json\n{"ids": ["p1"]}\n```': ("p1",),
    'It\'s "p1\\" {"rationale": "the \\\\", "ids": ["p1"]}': ("p1",),
    '{"rationale": "a } and {", "ids": ["p3"]}': ("p3",),
    '{"ids": ["p1"]} hm': "trailing_text",
    'so {"ids": ["p1"': "truncated",
    "so }": "no_json",
    "thoughts only": "no_json",
    "so {nothing}": "bad_json",
}


@pytest.mark.parametrize(("text", "ids"), VALID.items())
def test_valid(text, ids):
    found = parse(text, POOL)
    assert found.valid
    assert found.ids == ids


@pytest.mark.parametrize(("text", "error"), INVALID.items())
def test_malformed(text, error):
    found = parse(text, POOL)
    assert (found.ids, found.error) == ((), error)


@pytest.mark.parametrize(("text", "expected"), THINKING.items())
def test_thinking(text, expected):
    found = parse(text, POOL, think=True)
    assert (found.error if isinstance(expected, str) else found.ids) == expected


def test_every_kind_is_in_the_table():
    assert set(INVALID.values()) == set(MALFORMED)


def test_rationale_is_kept():
    assert parse('{"rationale": "p1 names it", "ids": ["p1"]}', POOL).rationale == "p1 names it"


answers = st.fixed_dictionaries(
    {"rationale": st.text(), "ids": st.lists(st.sampled_from(POOL), unique=True)},
)


@given(answers, st.booleans(), st.sampled_from([None, 1]))
def test_whatever_json_is_written_is_read_back(answer, ascii_only, indent):
    text = json.dumps(answer, ensure_ascii=ascii_only, indent=indent)
    for think in (False, True):
        found = parse(text, POOL, think=think)
        assert found.ids == tuple(answer["ids"])
        assert found.rationale == answer["rationale"]


@given(answers, st.data())
def test_every_prefix_of_an_answer_is_truncated(answer, data):
    text = json.dumps(answer)
    cut = data.draw(st.integers(1, len(text) - 1))
    assert parse(text[:cut], POOL).error == "truncated"


@given(st.text(alphabet='{}[]":,\\ p1ids\n`'), st.booleans())
@settings(max_examples=500)
def test_anything_is_valid_or_classified(text, think):
    found = parse(text, POOL, think=think)
    assert found.error in (None, *MALFORMED)
    if not found.valid:
        assert found.ids == ()


@given(st.text(alphabet="ab \"'\\"), answers)
def test_thoughts_without_braces_do_not_change_the_answer(thoughts, answer):
    assert parse(thoughts + "\n" + json.dumps(answer), POOL, think=True).ids == tuple(answer["ids"])


MEGABYTE = 2**20
UNPLEASANT = {
    "opening": "{" * MEGABYTE,
    "closing": "}" * MEGABYTE,
    "nested": "{" * (MEGABYTE // 2) + "}" * (MEGABYTE // 2),
    "pairs": "{}" * (MEGABYTE // 2),
    "objects": '{"a":' * (MEGABYTE // 5),
    "closed objects": '{"a":' * (MEGABYTE // 8) + "1" + "}" * (MEGABYTE // 8),
    "lists": '{"ids":' + "[" * MEGABYTE,
    "quotes": '{"' + '\\"' * (MEGABYTE // 2),
    "backslashes": '{"a": "' + "\\" * MEGABYTE + '"}',
    "quoted backslashes": '{"' + '\\\\"' * (MEGABYTE // 3) + "}",
    "digits": '{"ids": [' + "9" * MEGABYTE + "]}",
    "spaces": "{" + " " * MEGABYTE,
}


@pytest.mark.parametrize("think", [False, True])
@pytest.mark.parametrize("text", UNPLEASANT.values(), ids=UNPLEASANT)
def test_a_megabyte_of_anything_is_malformed_in_linear_time(text, think):
    def seconds(part: str) -> float:
        started = time.process_time()
        assert not parse(part, POOL, think=think).valid
        return time.process_time() - started

    # A quadratic scan takes hours for a megabyte; five seconds is far from either.
    assert seconds(text) < 5


def test_half_a_character_in_a_rationale_can_be_written():
    found = parse('{"rationale": "half \\ud83d, whole \\ud83d\\ude00", "ids": ["p1"]}', POOL)
    assert found.rationale == "half \ufffd, whole 😀"
    assert found.rationale.encode()

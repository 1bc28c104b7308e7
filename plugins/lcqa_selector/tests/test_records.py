"""Rows of data: what a file may hold, and how a line that it may not is named."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from budwood_lcqa_selector.records import DataError, Passage, PoolRow, read_jsonl, read_rows, split_of, write_rows


def row(**changes):
    passages = (Passage(id="a", title="Rome", text="Rome is a city."), Passage(id="b", text="Paris, too."))
    return PoolRow(**{"qid": "q", "question": "Where?", "answers": ("Rome",), "passages": passages, **changes})


def test_a_file_of_rows_reads_back_equal(tmp_path):
    rows = [
        row(gold_sets=(("b", "a"), ("a",)), gold_origin="mined", mine_meta={"calls": 3}, injected_ids=("a",)),
        row(
            qid="ü", root_qid="q", question="東京は何処?🙂", passages=(Passage(id="1", text="🙂", source_span=(3, 4)),)
        ),
        row(qid="none", passages=()),
    ]
    assert write_rows(tmp_path / "rows.jsonl", rows) == 3
    assert list(read_rows(tmp_path / "rows.jsonl")) == rows
    assert [found.root_qid for found in rows] == ["q", "q", "none"]


def test_tokens_are_counted_once_and_kept():
    assert row().passages[0].n_tokens == 6  # Rome Rome is a city .
    assert Passage(id="a", text="东京是首都").n_tokens == 5
    assert Passage(id="a", text="whatever", n_tokens=70).n_tokens == 70
    assert row().n_tokens == 10


def test_chosen_passages_come_in_pool_order():
    assert [passage.id for passage in row().chosen(["b", "a"])] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{'qid': 1}", "no JSON"),
        ("[1, 2]", "is a list"),
        ('{"qid": "x", "question": "?"', "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("\udcff", "no JSON"),
        ('{"qid": "\\ud83d", "question": "?", "answers": [], "passages": []}', "half a character"),
        ('{"qid": 7, "question": "?", "answers": [], "passages": []}', "qid: Input should be a valid string"),
        ('{"qid": "x", "question": "?", "passages": []}', "answers: Field required"),
        ('{"qid": "x", "question": "?", "answers": [], "passages": [{"id": "a"}]}', "passages.0.text: Field required"),
        ('{"qid": "x", "question": "?", "answers": [], "passages": [], "gold": 1}', "gold: Extra inputs"),
        (
            '{"qid": "x", "question": "?", "answers": [], "passages": [], "injected_ids": ["a"]}',
            "injected_ids names 'a'",
        ),
        (
            '{"qid": "x", "question": "?", "answers": [], "passages": [{"id": "a", "text": ""}, {"id": "a", "text": ""}]}',
            "two passages have the id 'a'",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    path = tmp_path / "rows.jsonl"
    good = row().model_dump_json()
    path.write_bytes(f"{good}\n\n{line}\n{good}\n".encode(errors="surrogateescape"))
    found = read_rows(path)
    assert next(found) == row()
    with pytest.raises(DataError) as refused:
        next(found)
    assert refused.value.where == f"{path}, line 3"
    assert said in str(refused.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        next(read_jsonl(tmp_path / "none.jsonl"))


def test_a_byte_order_mark_is_no_error(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": 1}).encode())
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == [(1, {"a": 1})]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [row()])

    def broken():
        yield row(qid="new")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_rows(path, broken())
    assert [found.qid for found in read_rows(path)] == ["q"]


def test_rewrites_stay_in_the_part_of_their_question():
    parts = {"train": 0.8, "validation": 0.1, "test": 0.1}
    counted = Counter(split_of(f"root-{i}", parts) for i in range(5000))
    for name, share in parts.items():
        assert abs(counted[name] / 5000 - share) < 0.02
    rewrites = [row(qid=f"root-{i}-{k}", root_qid=f"root-{i}") for i in range(50) for k in range(6)]
    parts_of = {
        found.root_qid: {split_of(r.root_qid, parts) for r in rewrites if r.root_qid == found.root_qid}
        for found in rewrites
    }
    assert all(len(found) == 1 for found in parts_of.values())
    assert {split_of(f"root-{i}", parts, seed=1) == split_of(f"root-{i}", parts) for i in range(50)} == {True, False}

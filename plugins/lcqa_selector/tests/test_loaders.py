"""Every published format, from three records each, and what is said of one that does not fit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from budwood_lcqa_selector.loaders import LOADERS, load
from budwood_lcqa_selector.records import DataError, write_rows
from budwood_lcqa_selector.worlds import fact_chain

DATA = Path(os.environ.get("BUDWOOD_DATA", "")) / "lcqa"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="BUDWOOD_DATA names no folder with lcqa/")

HOTPOT = [
    {
        "_id": f"5a{i}",
        "question": "Which magazine was started first?",
        "answer": "Arthur's Magazine",
        "type": "comparison",
        "level": "medium",
        "supporting_facts": [["Arthur's Magazine", 0], ["First for Women", 0], ["Arthur's Magazine", 1]],
        "context": [
            ["Radio City", ["Radio City is a station.", " It broadcasts."]],
            ["Arthur's Magazine", ["Arthur's Magazine (1844-1846).", " It was American."]],
            ["First for Women", ["First for Women is a magazine.", " It began in 1989."]],
        ],
    }
    for i in range(3)
]
MUSIQUE = [
    {
        "id": f"2hop__{i}",
        "question": "Who is the spouse of the Green performer?",
        "answer": "Miquette Giraudy",
        "answer_aliases": ["Giraudy"],
        "answerable": True,
        "paragraphs": [
            {"idx": 0, "title": "Grant", "paragraph_text": "Grant ...", "is_supporting": False},
            {"idx": 1, "title": "Green", "paragraph_text": "Green is by Steve Hillage.", "is_supporting": True},
            {"idx": 2, "title": "Giraudy", "paragraph_text": "She is married to him.", "is_supporting": True},
        ],
    }
    for i in range(3)
]
LOCOMO = [
    {
        "sample_id": f"conv-{i}",
        "conversation": {
            "speaker_a": "Ann",
            "speaker_b": "Bo",
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": [
                {"speaker": "Ann", "dia_id": "D1:1", "text": "Hey Bo!"},
                {"speaker": "Bo", "dia_id": "D1:2", "text": "I joined a choir yesterday."},
            ],
            "session_10_date_time": "9 May",
            "session_10": [{"speaker": "Ann", "dia_id": "D10:1", "text": "Bye."}],
            "session_2_date_time": "8 May",
            "session_2": [{"speaker": "Ann", "dia_id": "D2:1", "text": "And?"}],
        },
        "qa": [
            {"question": "When did Bo join?", "answer": "7 May 2023", "evidence": ["D1:2"], "category": 2},
            {"question": "How old?", "answer": 2022, "evidence": ["D9:9"], "category": 1},
            {"question": "Why did Ann sing?", "adversarial_answer": "joy", "evidence": ["D1:2"], "category": 5},
        ],
    }
    for i in range(3)
]
LONGBENCH = [
    {
        "_id": f"l{i}",
        "input": "Who?",
        "context": "A long text. 很长。",
        "answers": ["he", "him"],
        "length": 5,
        "dataset": "multifieldqa_en",
        "language": "en",
        "all_classes": None,
    }
    for i in range(3)
]
SHIPPED = [
    {
        "qid": f"q{i}",
        "question": "?",
        "answers": ["x"],
        "gold_ids": ["p2"],
        "gold_certain": i != 1,
        "passages": [
            {"id": "p1", "title": "t", "text": "one"},
            {"id": "p2", "title": "u", "sentences": ["two.", " three."]},
        ],
    }
    for i in range(3)
]
NQ = [
    {
        "qid": f"nq{i}",
        "question": f"word{i} again",
        "answers": ["a"],
        "gold": {"title": f"T{i}", "text": f"word{i} or word{i + 1}"},
    }
    for i in range(40)
]


def write(folder, name, records):
    path = folder / name
    lines = name.endswith(".jsonl")
    path.write_text("\n".join(map(json.dumps, records)) if lines else json.dumps(records))
    return path


@pytest.mark.parametrize(
    ("kind", "records", "name", "qids", "answers", "passages", "gold"),
    [
        ("hotpotqa", HOTPOT, "x.json", ["5a0", "5a1", "5a2"], ("Arthur's Magazine",), 3, (("p2", "p3"),)),
        ("2wiki", HOTPOT, "x.jsonl", ["5a0", "5a1", "5a2"], ("Arthur's Magazine",), 3, (("p2", "p3"),)),
        (
            "musique",
            MUSIQUE,
            "x.jsonl",
            ["2hop__0", "2hop__1", "2hop__2"],
            ("Miquette Giraudy", "Giraudy"),
            3,
            (("p1", "p2"),),
        ),
        ("longbench", LONGBENCH, "x.jsonl", ["l0", "l1", "l2"], ("he", "him"), 1, ()),
        ("shipped", SHIPPED, "x.jsonl", ["q0", "q2"], ("x",), 2, (("p2",),)),
        ("locomo", LOCOMO[:1], "x.json", ["conv-0-0", "conv-0-1", "conv-0-2_abs"], ("7 May 2023",), 4, (("D1:2",),)),
    ],
)
def test_published_formats(tmp_path, kind, records, name, qids, answers, passages, gold):
    rows = list(load(write(tmp_path, name, records), kind))
    assert [row.qid for row in rows] == qids
    assert rows[0].answers == answers
    assert len(rows[0].passages) == passages
    assert rows[0].gold_sets == gold


def test_details_of_formats(tmp_path):
    assert next(load(write(tmp_path, "h.json", HOTPOT), "hotpotqa")).passages[1].text == (
        "Arthur's Magazine (1844-1846). It was American."
    )
    assert next(load(write(tmp_path, "s.jsonl", SHIPPED), "shipped")).passages[1].text == "two. three."
    first, second, third = load(write(tmp_path, "l.json", LOCOMO[:1]), "locomo")
    assert first.ids == ("D1:1", "D1:2", "D2:1", "D10:1"), "sessions in the order of their numbers"
    assert first.passages[1].titled == "1:56 pm on 8 May, 2023\nBo: I joined a choir yesterday."
    assert (second.answers, second.gold_sets) == (("2022",), ()), "numbers are answers; unknown turns are no evidence"
    assert third.gold_sets == ()
    named = ["D1:1; D2:1", "D1:2", "D1:2 D10:1,D1:1"]
    talk = {**LOCOMO[0], "qa": [{"question": "?", "answer": "x", "evidence": named}]}
    (row,) = load(write(tmp_path, "several.json", [talk]), "locomo")
    assert row.gold_sets == (("D1:1", "D2:1", "D1:2", "D10:1"),)


def test_nq_open_pools_have_hard_negatives(tmp_path):
    rows = list(load(write(tmp_path, "nq.jsonl", NQ), "nq-open"))
    assert len(rows) == 40
    for i, row in enumerate(rows):
        assert len(row.passages) == 20
        assert row.gold_sets == ((f"p{i}",),)
        assert {f"p{i}", f"p{max(0, i - 1)}"} <= set(row.ids[:2])


def test_own_rows_read_back(tmp_path):
    rows = [fact_chain(seed) for seed in range(3)]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert list(load(tmp_path / "rows.jsonl")) == rows


@pytest.mark.parametrize(
    ("kind", "records"), [("hotpotqa", HOTPOT), ("musique", MUSIQUE), ("locomo", LOCOMO), ("longbench", LONGBENCH)]
)
@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_a_record_that_lacks_a_field_is_named(tmp_path, kind, records, name):
    field = {"hotpotqa": "context", "musique": "paragraphs", "locomo": "qa", "longbench": "answers"}[kind]
    for broken in ({key: value for key, value in records[1].items() if key != field}, {**records[1], field: 7}, {}):
        with pytest.raises(DataError) as refused:
            list(load(write(tmp_path, name, [records[0], broken, records[2]]), kind))
        assert refused.value.where == f"{tmp_path / name}, line 2"


@pytest.mark.parametrize("kind", LOADERS)
def test_a_bad_line_is_named_in_every_format(tmp_path, kind):
    path = tmp_path / "x.jsonl"
    good = {"rows": fact_chain(0).model_dump(), "nq-open": NQ[0], "shipped": SHIPPED[0], "hotpotqa": HOTPOT[0]}
    good |= {"2wiki": HOTPOT[0], "musique": MUSIQUE[0], "locomo": LOCOMO[0], "longbench": LONGBENCH[0]}
    path.write_text(json.dumps(good[kind]) + '\n{"qid": oops}\n')
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: this line is no JSON"):
        list(load(path, kind))


def test_evidence_must_name_passages(tmp_path):
    wrong = [{**SHIPPED[0], "gold_ids": ["p9"]}]
    with pytest.raises(DataError, match=r"line 1: .*its evidence names 'p9', which is no passage of it"):
        list(load(write(tmp_path, "x.jsonl", wrong), "shipped"))


def test_questions_with_half_their_evidence_are_left_out_and_named(tmp_path, caplog):
    half = {**HOTPOT[1], "supporting_facts": [["Arthur's Magazine", 0], ["Elsewhere", 0]]}
    path = write(tmp_path, "x.json", [HOTPOT[0], half, HOTPOT[2]])
    assert [row.qid for row in load(path, "hotpotqa")] == ["5a0", "5a2"]
    assert caplog.messages == [
        f"{path}, line 2 is left out: its context has no passage 'Elsewhere', which its evidence names"
    ]


def test_questions_with_uncertain_gold_are_left_out_and_named(tmp_path, caplog):
    path, lines = write(tmp_path, "x.jsonl", SHIPPED), []
    assert [row.qid for row in load(path, "shipped", lines)] == ["q0", "q2"]
    assert caplog.messages == [f"{path}, line 2 is left out: its gold is marked as uncertain"]
    assert lines == [2]


def test_unknown_formats_and_files(tmp_path):
    with pytest.raises(DataError, match=r"no data format 'csv'\. Choose one of rows, shipped"):
        load(tmp_path, "csv")
    with pytest.raises(DataError, match="no such file"):
        list(load(tmp_path / "x.json", "hotpotqa"))
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match="no JSON"):
        list(load(tmp_path / "x.json", "hotpotqa"))
    (tmp_path / "x.json").write_text('[{}, {"_id": "\\ud83d"}]')
    with pytest.raises(DataError, match="line 1: this record is not of the expected format"):
        list(load(tmp_path / "x.json", "hotpotqa"))
    (tmp_path / "x.json").write_text('[{"_id": "\\ud83d"}]')
    with pytest.raises(DataError, match="line 1: it has half a character"):
        list(load(tmp_path / "x.json", "hotpotqa"))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match="a list of records was expected"):
        list(load(tmp_path / "x.json", "hotpotqa"))


@needs_data
def test_shipped_data():
    hotpot, ircot, nq = (
        list(load(DATA / f"{name}.jsonl", kind))
        for name, kind in (
            ("hotpotqa_distractor_100", "shipped"),
            ("ircot_hotpotqa", "shipped"),
            ("nq_open_gold_800", "nq-open"),
        )
    )
    assert [len(rows) for rows in (hotpot, ircot, nq)] == [100, 26, 800]
    assert {len(row.gold_sets[0]) for row in [*hotpot, *ircot]} == {2}
    assert {len(row.passages) for row in nq} == {20}
    assert len({row.qid for row in [*hotpot, *ircot, *nq]}) == 926

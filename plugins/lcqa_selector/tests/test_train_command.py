"""``budwood lcqa train`` as a person types it: a head that picks, the same one again, and nothing half written."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy

from budwood.api import BudwoodError
from budwood.cli import main
from budwood_lcqa_selector.head import ABOUT, SelectorHead
from budwood_lcqa_selector.records import read_rows, write_rows
from budwood_lcqa_selector.worlds import fact_chain


@pytest.fixture
def mined(tmp_path):
    path = tmp_path / "mined.jsonl"
    write_rows(path, [fact_chain(seed, hops=1 + seed % 2, pool=6) for seed in range(80)])
    return path


@pytest.fixture
def others(tmp_path):
    path = tmp_path / "others.jsonl"
    write_rows(path, [fact_chain(seed, hops=1 + seed % 2, pool=6) for seed in range(200, 260)])
    return path


@pytest.fixture
def budwood(capsys):
    def call(*words, code=0):
        assert main(["lcqa", *map(str, words), "--json"]) == code
        out, err = capsys.readouterr()
        return json.loads(out.splitlines()[-1]), err

    return call


def test_mined_rows_become_a_head_that_picks(budwood, mined, others, tmp_path):
    head = tmp_path / "new" / "head.safetensors"
    found, said = budwood("train", mined, "--out", head, "--steps", 120)
    assert (found["rows"], found["held_out"]) == (64, 16)
    assert [switch["stage"] for switch in found["switches"]] == ["precision"]
    assert found["measured"]["evidence_f1"]["mean"] > 0.9
    assert f"on {found['held_out']} held out: recall" in said
    evaluated, _ = budwood(
        "evaluate", others, "--no-answers", "--method", f"head:{head}", "--method", "bm25:1", "--method", "bm25:2"
    )
    f1 = {name: numbers["evidence_f1"]["mean"] for name, numbers in evaluated["methods"].items()}
    assert f1[f"head:{head}"] > max(f1["bm25:1"], f1["bm25:2"]) + 0.1
    (asked, *_) = read_rows(others)
    passages = tmp_path / "pool.jsonl"
    passages.write_text("\n".join(json.dumps({"id": p.id, "text": p.text, "title": p.title}) for p in asked.passages))
    picked, _ = budwood("pick", "--question", asked.question, "--passages", passages, "--picker", f"head:{head}")
    assert set(picked["ids"]) == set(asked.gold_sets[0])


def test_the_same_seed_gives_the_same_file(budwood, mined, tmp_path):
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for file, seed in zip(files, (5, 5, 6), strict=True):
        budwood("train", mined, "--out", file, "--steps", 6, "--seed", seed)
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


def test_interrupted_it_leaves_the_file_as_it_was(budwood, mined, tmp_path, monkeypatch):
    from budwood_lcqa_selector import head_training

    head = tmp_path / "head.safetensors"
    budwood("train", mined, "--out", head, "--steps", 4)
    before = head.read_bytes()
    scored = head_training.Data.rewards
    calls = []

    def interrupted(self, *given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scored(self, *given)

    monkeypatch.setattr(head_training.Data, "rewards", interrupted)
    assert main(["lcqa", "train", str(mined), "--out", str(head), "--steps", "40"]) == 130
    assert head.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.safetensors", "mined.jsonl"]


def test_rewrites_of_a_question_are_trained_on_or_watched(budwood, tmp_path, monkeypatch):
    from budwood_lcqa_selector import head_training

    rows = [fact_chain(seed, pool=4) for seed in range(30)]
    path, seen = tmp_path / "mined.jsonl", []
    write_rows(path, [row.with_(qid=f"{row.qid}-r{i}", root_qid=row.qid) for row in rows for i in range(3)])
    made = head_training.Data.__init__
    monkeypatch.setattr(head_training.Data, "__init__", lambda self, rows: (seen.append(rows), made(self, rows))[1])
    budwood("train", path, "--out", tmp_path / "head.safetensors", "--steps", 2)
    other, one = ({row.root_qid for row in part} for part in seen)
    assert one.isdisjoint(other)
    assert (len(one), len(other)) == (24, 6)


def test_rows_of_others_are_watched(budwood, mined, others, tmp_path):
    found, _ = budwood("train", mined, "--held-out", others, "--out", tmp_path / "head.safetensors", "--steps", 2)
    assert (found["rows"], found["held_out"]) == (80, 60)


def test_what_teaches_nothing_is_said(budwood, tmp_path):
    rows = [fact_chain(seed, pool=4) for seed in range(100)]
    path = tmp_path / "mined.jsonl"
    write_rows(path, [row.with_(gold_sets=() if i % 4 == 0 else (("elsewhere",),)) for i, row in enumerate(rows)])
    found, said = budwood("train", path, "--out", tmp_path / "head.safetensors", "--steps", 4)
    assert found["without_evidence"] == 25
    assert "25 of 100 rows have no evidence and teach nothing" in said
    assert "it has learned nothing; try --mode paper" in said
    assert "so few rows" not in said
    assert found["switches"] == [{"stage": "precision", "step": 2, "reason": "max_steps"}]


@pytest.mark.parametrize("learnable", [True, False])
def test_few_rows_are_said_in_place_of_another_setting(budwood, tmp_path, learnable):
    rows = [fact_chain(seed, hops=1 + seed % 2, pool=6) for seed in range(60)]
    path = tmp_path / "mined.jsonl"
    write_rows(path, rows if learnable else [row.with_(gold_sets=(("elsewhere",),)) for row in rows])
    found, said = budwood("train", path, "--out", tmp_path / "head.safetensors", "--steps", 120)
    assert found["rows"] == 48
    assert "so few rows teach little that holds for other questions: train on 50 or more" in said
    assert ("it has learned nothing\n" in said) is not learnable
    assert "--mode paper" not in said


def test_gold_put_in_is_said(budwood, mined, tmp_path):
    rows = [row.with_(injected_ids=row.gold_sets[0]) for row in read_rows(mined)]
    write_rows(mined, rows)
    _, said = budwood("train", mined, "--out", tmp_path / "head.safetensors", "--steps", 2)
    assert "some of their pools have gold put in that retrieval missed" in said


def test_too_few_rows(budwood, tmp_path):
    path = tmp_path / "mined.jsonl"
    write_rows(path, [fact_chain(0, pool=4)])
    found, said = budwood("train", path, "--out", tmp_path / "head.safetensors", code=2)
    assert "too few rows with evidence: 0 to train on, 1 to watch" in said
    assert found["error"]["do"].startswith("Mine more questions")
    assert not (tmp_path / "head.safetensors").exists()


NAMES = SelectorHead.names(True)


@pytest.mark.parametrize(
    ("weights", "about"),
    [
        (np.zeros(9), None),
        (np.zeros(9), {"rationale": True}),
        (np.zeros(9), {"rationale": False, "weights": NAMES}),
        (np.zeros(9), {"rationale": True, "weights": NAMES[::-1]}),
        (np.zeros(8), {"rationale": True, "weights": NAMES}),
        (np.full(9, np.nan), {"rationale": True, "weights": NAMES}),
    ],
)
def test_files_that_are_no_head(tmp_path, weights, about):
    path = tmp_path / "head.safetensors"
    metadata = None if about is None else {ABOUT: json.dumps(about)}
    path.write_bytes(safetensors.numpy.save({"weights": weights}, metadata))
    with pytest.raises(BudwoodError, match="no selector head"):
        SelectorHead.load(path)


@pytest.mark.parametrize("content", [None, b"", b'{"weights": {}}', b"\xff" * 100])
def test_files_that_are_no_safetensors(tmp_path, content):
    path = tmp_path / "head.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BudwoodError, match="no selector head"):
        SelectorHead.load(path)


def test_a_head_is_read_as_it_was_written(tmp_path):
    for rationale in (True, False):
        weights = np.random.default_rng(0).standard_normal(len(SelectorHead.names(rationale)))
        SelectorHead(weights, rationale).save(tmp_path / "head.safetensors")
        found = SelectorHead.load(tmp_path / "head.safetensors")
        assert found.rationale is rationale
        assert found.weights.tolist() == weights.tolist()

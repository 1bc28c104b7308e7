"""Rewrites: what is read of a reply, what a rewrite shares with its question, and that replies are kept."""

from __future__ import annotations

import pytest

from budwood.cli import main
from budwood_lcqa_selector.records import read_rows, split_of, write_rows
from budwood_lcqa_selector.rewriting import read_rewrites, with_rewrites
from budwood_lcqa_selector.worlds import fact_chain
from budwood_models import Reply


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ('["Which town?", "What city?"]', ["Which town?", "What city?"]),
        ('Sure!\n```json\n["Which town?",\n "which TOWN"]\n```', ["Which town?"]),
        ("1. Which town?\n2) What  city?\n- Name the place.", ["Which town?", "What city?", "Name the place."]),
        ('["Where is it?", "", 3, null, "Which town?"]', ["Which town?"]),
        ("where is it", []),
        ("[not json\n1. Which town?]", ["Which town?]"]),
        ("[" * 100_000 + "]" * 100_000, []),
        ("", []),
    ],
)
def test_rewrites_are_read(reply, found):
    assert read_rewrites(reply, "Where is it?") == found


@pytest.mark.parametrize("reply", ["- a" + " " * 200_000 + "b", "\n" * 200_000 + "x", "- " * 200_000, "1" * 200_000])
def test_reading_rewrites_is_linear(reply):
    """At 200,000 characters the square of them takes minutes."""
    assert len(read_rewrites(reply, "?")) <= 1


class Parrot:
    def __init__(self):
        self.identity = {"generator": "parrot"}
        self.asked = 0

    def stream(self, prompts, *, max_tokens, temperature=0.0, seed=0):
        for i, prompt in enumerate(prompts):
            self.asked += 1
            said = prompt[-1]["content"]
            yield i, Reply(f'["Tell me: {said}", "{said}", "I ask: {said}", "Pray: {said}"]', 1, 1, truncated=False)

    def generate(self, prompts, *, max_tokens, temperature=0.0, seed=0):
        return [reply for _, reply in self.stream(prompts, max_tokens=max_tokens)]


def test_a_rewrite_is_its_question_in_other_words():
    rows = [fact_chain(seed) for seed in range(10)]
    found = list(with_rewrites(rows, Parrot(), n=2))
    assert [row.qid for row in found[:4]] == ["chain-0", "chain-0-r1", "chain-0-r2", "chain-1"]
    assert len(found) == 30
    for i, row in enumerate(found):
        original = rows[i // 3]
        assert row.root_qid == original.qid
        assert (row.passages, row.answers, row.gold_sets) == (original.passages, original.answers, original.gold_sets)
        assert (row.question == original.question) is (i % 3 == 0)
    parts = {"train": 0.5, "test": 0.5}
    assert all(split_of(row.root_qid, parts) == split_of(rows[i // 3].root_qid, parts) for i, row in enumerate(found))


def test_replies_are_kept(tmp_path, monkeypatch, capsys):
    parrot = Parrot()
    monkeypatch.setattr("budwood_lcqa_selector.parts.generator_named", lambda *_: parrot)
    data, out = tmp_path / "worlds.jsonl", tmp_path / "more.jsonl"
    write_rows(data, [fact_chain(seed) for seed in range(9)])
    words = ["lcqa", "rewrite", str(data), "--generator", "parrot", "--n", "3", "--out", str(out)]
    assert main(words) == 0
    assert "9 questions and 27 rewrites" in capsys.readouterr().out
    written = out.read_bytes()
    assert len(list(read_rows(out))) == 36
    assert main(words) == 0
    assert (parrot.asked, out.read_bytes()) == (9, written)


def test_a_rewrite_needs_a_language_model(tmp_path, capsys):
    write_rows(tmp_path / "w.jsonl", [fact_chain(0)])
    words = ["lcqa", "rewrite", str(tmp_path / "w.jsonl"), "--generator", "extractive", "--out", str(tmp_path / "x")]
    assert main(words) == 2
    assert "need a language model" in capsys.readouterr().err

"""Scoring a batch: each row by its own stage, rows without evidence, and what is logged."""

from __future__ import annotations

import json
import pickle

import pytest

from budwood.api import Completions
from budwood_lcqa_selector.following import SAMPLES_FILE, StageCallback
from budwood_lcqa_selector.parsing import MALFORMED
from budwood_lcqa_selector.reward import MODES
from budwood_lcqa_selector.scoring import SAMPLES, PickerScore
from budwood_lcqa_selector.stages import TWO_STAGES, StageController

POOL = ["p1", "p2", "p3", "p4", "p5"]


def answer(*ids: str) -> str:
    return json.dumps({"rationale": "because", "ids": ids})


def scored(texts, stage, gold=None, score=None, role="train"):
    """(rewards, what was logged) of answers about one pool of five, 10 tokens each, whose evidence is p1 and p2."""
    logged: dict[str, float] = {}
    n = len(texts)
    columns = {
        "pool_ids": [POOL] * n,
        "pool_tokens": [[10] * 5] * n,
        "gold_sets": [json.dumps(gold if gold is not None else [["p1", "p2"]])] * n,
        "stage": stage,
        "pool_titles": [["Ann", "Bolt", "Cy", "Dee", "E" * 50]] * n,
        "question": ["Who?"] * n,
        "qid": [f"q{i}" for i in range(n)],
        "role": [role] * n,
    }
    batch = Completions([""] * n, texts, [[]] * n, columns, 7, logged.__setitem__)
    return (score or PickerScore())(batch), logged


def test_each_row_by_its_own_stage():
    """Four picked with both facts: within the margin of 4, beyond that of 1, in one batch."""
    rewards, logged = scored([answer("p1", "p2", "p3", "p4")] * 2, [0, 1])
    assert rewards == [pytest.approx(1 - 0.5 * 2 / 6), 0.0]
    assert logged["lcqa_selector/stage"] == 0.5
    assert logged["lcqa_selector/over_select"] == 0.5


def test_rows_without_evidence_have_no_reward():
    """A pool of distractors only: nothing to compare with, so no reward and not a bad one, also for a malformed answer."""
    rewards, _ = scored([answer("p1"), answer(), "?"], [0, 0, 0], gold=[])
    assert rewards == [None, None, None]


def test_parts():
    _, logged = scored([answer("p1"), answer("p1", "p2", "p3"), "no", '{"ids": ["p9"]}'], [1] * 4)
    shown = {name.removeprefix("lcqa_selector/"): value for name, value in logged.items()}
    assert shown["coverage"] == pytest.approx(0.75)
    assert shown["size"] == 2
    assert shown["kept_tokens"] == pytest.approx((0.2 + 0.6) / 2)
    assert shown["invalid"] == 0.5
    assert (shown["invalid/no_json"], shown["invalid/unknown_id"]) == (0.25, 0.25)


def test_every_batch_logs_the_same_names():
    """Processes average by name: one that has only malformed answers must log what the others do."""
    names = [set(scored(texts, [0])[1]) for texts in ([answer("p1")], ["?"], [answer()])]
    assert names[0] == names[1] == names[2]
    assert {f"lcqa_selector/invalid/{kind}" for kind in MALFORMED} <= names[0]


@pytest.mark.parametrize("mode", MODES)
def test_a_row_does_not_depend_on_its_batch(mode):
    texts = [answer(*POOL[:n]) for n in range(6)] + ["?"]
    together, _ = scored(texts, [0, 1, 0, 1, 0, 1, 0], score=PickerScore(mode=mode))
    alone = [scored([t], [i % 2], score=PickerScore(mode=mode))[0][0] for i, t in enumerate(texts)]
    assert together == alone


def test_samples_are_of_evaluation_rows_and_few():
    score = PickerScore()
    scored([answer("p1")], [0], score=score)
    assert score.samples == {}
    scored([answer("p1", "p3")] * 20, [1] * 20, score=score, role="eval")
    assert len(score.samples) == SAMPLES
    assert score.samples["q0"] == {
        "question": "Who?",
        "stage": "precision",
        "chosen": "p1 Ann; p3 Cy",
        "evidence": "p1 Ann; p2 Bolt",
        "tokens kept": "40 %",
        "rationale": "because",
    }
    scored(["?"], [0], score=score, role="eval")
    assert score.samples["q0"]["chosen"] == "malformed: no_json"


def test_it_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(PickerScore(TWO_STAGES, 0.3, "beyond"))) == PickerScore(TWO_STAGES, 0.3, "beyond")


def test_samples_with_half_a_character_reach_their_file(tmp_path):
    keeping = PickerScore()
    scored([r'{"rationale": "half \ud83d", "ids": ["p1"]}'], [0], score=keeping, role="eval")
    StageCallback(StageController(), "reward", keeping.samples, tmp_path).on_run_end(None)
    (sample,) = json.loads((tmp_path / SAMPLES_FILE).read_text())
    assert sample["rationale"] == "half \ufffd"


def test_evidence_that_retrieval_missed_is_uncovered_and_said_so():
    keeping = PickerScore()
    rewards, _ = scored([answer("p1")], [0], gold=[["p1", "absent:Rome"]], score=keeping, role="eval")
    assert rewards == [0.5]
    assert keeping.samples["q0"]["evidence"] == "p1 Ann; absent:Rome not in the pool"

"""Evidence mining on real questions without a model: which of them are kept, calls, time, and agreement with the annotation.

    OMP_NUM_THREADS=1 BUDWOOD_DATA=... python tests/benchmarks/lcqa_mining.py docs/methods/lcqa_selector/mining.csv

Extractive generator, judge ``contains``, 20 candidates; HotpotQA (100 and 26 questions) and the first 200 of NQ-open with 19
hard negatives each. Two minutes. Regression numbers: one sentence seldom answers a question that needs two passages.
"""

from __future__ import annotations

import csv
import os
import sys
import time
from itertools import islice
from pathlib import Path

from budwood_lcqa_selector.answer_cache import AnswerCache
from budwood_lcqa_selector.asking import Asker
from budwood_lcqa_selector.extractive import ExtractiveGenerator
from budwood_lcqa_selector.judges import Contains
from budwood_lcqa_selector.loaders import load
from budwood_lcqa_selector.mining import Miner, Mining

SETS = {
    "hotpotqa_distractor_100": ("shipped", None),
    "ircot_hotpotqa": ("shipped", None),
    "nq_open_gold_800": ("nq-open", 200),
}
COLUMNS = (
    "data",
    "questions",
    "strategy",
    "mined",
    "mean_size",
    "in_annotation",
    "calls",
    "calls_mined",
    "cpu_seconds",
)


def main() -> None:
    folder = Path(os.environ["BUDWOOD_DATA"]) / "lcqa"
    rows = []
    for name, (kind, limit) in SETS.items():
        questions = list(islice(load(folder / f"{name}.jsonl", kind), limit))
        gold = {row.qid: set(row.gold_sets[0]) for row in questions}
        for strategy in ("loo", "quickxplain", "prefix"):
            asker = Asker(ExtractiveGenerator(), Contains(), AnswerCache(None))
            began = time.process_time()
            found = list(Miner(asker, Mining(strategy, reask=0.0)).mine(questions))
            seconds = time.process_time() - began
            mined = [(result.row, result.calls) for result in found if result.row is not None]
            sizes = [len(row.gold_sets[0]) for row, _ in mined]
            agreed = sum(set(row.gold_sets[0]) <= gold[row.qid] for row, _ in mined)
            values = (name, len(questions), strategy, len(mined), f"{sum(sizes) / len(sizes):.2f}", agreed)
            mean_calls = sum(calls for _, calls in mined) / len(mined)
            rows.append((*values, asker.counts.calls, f"{mean_calls:.1f}", f"{seconds:.1f}"))
            print(*(f"{column}={value}" for column, value in zip(COLUMNS, rows[-1], strict=True)))
    if len(sys.argv) > 1:
        with Path(sys.argv[1]).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()

"""The selector head on HotpotQA, against BM25 at the same number of tokens, question by question.

OMP_NUM_THREADS=1 python tests/benchmarks/lcqa_hotpotqa.py hotpotqa_distractor_100.jsonl docs/methods/lcqa_selector --seeds 5
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import lcqa_tables
import numpy as np
from lcqa_ablation import FULL

from budwood.api import Array
from budwood_lcqa_selector import evaluation
from budwood_lcqa_selector.baselines import Chosen, adaptive_k, budgeted, full, oracle, ranker, topk
from budwood_lcqa_selector.head import SelectorHead
from budwood_lcqa_selector.head_training import Data, train
from budwood_lcqa_selector.judges import contains
from budwood_lcqa_selector.loaders import load
from budwood_lcqa_selector.records import Choice, PoolRow

FOLDS = 5
PAIRS = (
    ("head", "BM25 at the tokens of: head"),
    ("head, no rationale", "BM25 at the tokens of: head, no rationale"),
    ("head", "head, no rationale"),
    ("head", "adaptive-k"),
)
MEASURES = ("evidence_recall", "evidence_precision", "evidence_f1", "covered", "size", "tokens", "has_answer")


def measures(row: PoolRow, choice: Choice) -> tuple[float, ...]:
    """``has_answer``: a reference stands in the chosen text, NaN for yes and no, which any text may hold by chance."""
    found = evaluation.picked(row, choice)
    named = [answer for answer in row.answers if answer.lower() not in ("yes", "no")]
    text = "\n".join(passage.titled for passage in row.chosen(choice.ids))
    has = float(contains(text, named)) if named else float("nan")
    return (*(float(found[name] or 0.0) for name in MEASURES[:-1]), has)


def folds(rows: list[PoolRow], seed: int) -> list[Array]:
    """Places of the rows of each fold; questions are in one fold each."""
    return np.array_split(np.random.default_rng(seed).permutation(len(rows)), FOLDS)


def trained_picks(rows: list[PoolRow], seed: int, rationale: bool) -> list[Choice]:
    """Every question picked for by a head that was trained on the other folds, a quarter of them held out."""
    found: list[Choice] = [Chosen(())] * len(rows)
    for fold in folds(rows, seed):
        others = [place for place in range(len(rows)) if place not in set(fold.tolist())]
        cut = 3 * len(others) // 4
        head = SelectorHead.fresh(rationale)
        train(head, Data([rows[i] for i in others[:cut]]), Data([rows[i] for i in others[cut:]]), FULL, seed)
        for place in fold.tolist():
            found[place] = Chosen(head.choose(rows[place]).ids)
    return found


def study(rows: list[PoolRow], seeds: int) -> tuple[dict[str, Array], float]:
    """Arm -> (seeds, questions, measures), and processor seconds of all trainings."""
    bm25 = ranker("bm25")
    whole = topk(10**9, bm25)
    plain = {"whole pool": full, "annotated evidence": oracle, "adaptive-k": adaptive_k(bm25)}
    plain |= {f"BM25, top {count}": topk(count, bm25) for count in (2, 3, 5)}
    arms = {name: np.array([[measures(row, select(row)) for row in rows]]) for name, select in plain.items()}
    started = time.process_time()
    for name, rationale in (("head", True), ("head, no rationale", False)):
        picks = [trained_picks(rows, seed, rationale) for seed in range(seeds)]
        arms[name] = np.array([[measures(row, choice) for row, choice in zip(rows, one, strict=True)] for one in picks])
        equal = []
        for one in picks:
            tokens = [sum(p.n_tokens for p in row.chosen(choice.ids)) for row, choice in zip(rows, one, strict=True)]
            equal.append([measures(row, budgeted(whole, n)(row)) for row, n in zip(rows, tokens, strict=True)])
        arms[f"BM25 at the tokens of: {name}"] = np.array(equal)
    return arms, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="HotpotQA rows with gold_ids, as JSON lines")
    parser.add_argument("folder", type=Path, help="where the tables go")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    rows = list(load(given.data, "shipped"))
    arms, seconds = study(rows, given.seeds)
    given.folder.mkdir(parents=True, exist_ok=True)
    lcqa_tables.write(given.folder / "hotpotqa.csv", arms, MEASURES)
    lcqa_tables.write_pairs(given.folder / "hotpotqa_pairs.csv", arms, PAIRS, MEASURES)
    print(f"{seconds:.0f} processor seconds for {2 * FOLDS * given.seeds} trainings")


if __name__ == "__main__":
    main()

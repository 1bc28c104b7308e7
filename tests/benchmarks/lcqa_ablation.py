"""The paper's ablations on fact chains, with the selector head as the policy.

OMP_NUM_THREADS=1 python tests/benchmarks/lcqa_ablation.py docs/methods/lcqa_selector --seeds 5
"""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import dataclass, replace
from pathlib import Path

import lcqa_tables
import numpy as np

from budwood.api import Array
from budwood_lcqa_selector import evaluation
from budwood_lcqa_selector.baselines import Chosen, full, ranker, topk
from budwood_lcqa_selector.head import SelectorHead
from budwood_lcqa_selector.head_training import Course, Data, Training, train
from budwood_lcqa_selector.records import Choice, PoolRow
from budwood_lcqa_selector.stages import PRECISION, RECALL
from budwood_lcqa_selector.worlds import fact_chain, follow

TRAINED, HELD_OUT, TESTED = 400, 100, 300
HOPS = (1, 2, 3)
FULL = Training(stages=(RECALL.model_copy(update={"max_steps": 150}), PRECISION))


@dataclass(frozen=True)
class Variant:
    training: Training
    rationale: bool = True


VARIANTS = {
    "full": Variant(FULL),
    "no rationale": Variant(FULL, rationale=False),
    "no redundancy term": Variant(replace(FULL, mode="none")),
    "no first stage": Variant(replace(FULL, stages=(PRECISION,))),
    "full, as printed": Variant(replace(FULL, mode="paper")),
    "no first stage, as printed": Variant(replace(FULL, mode="paper", stages=(PRECISION,))),
}
PAIRS = (
    *(("full", name) for name in ("BM25, top 2", "no rationale", "no redundancy term", "no first stage")),
    ("full, as printed", "no first stage, as printed"),
    ("full, as printed", "full"),
)
MEASURES = ("evidence_recall", "evidence_precision", "evidence_f1", "exact_set", "size", "kept", "answered")


def worlds(pool: int) -> tuple[list[PoolRow], list[PoolRow], list[PoolRow]]:
    """Train, held out (for the plateau), test: questions of one to three hops, a third each."""
    rows = [fact_chain(seed, hops=HOPS[seed % 3], pool=pool) for seed in range(TRAINED + HELD_OUT + TESTED)]
    return rows[:TRAINED], rows[TRAINED : TRAINED + HELD_OUT], rows[TRAINED + HELD_OUT :]


def measures(row: PoolRow, choice: Choice) -> tuple[float, ...]:
    """See :data:`MEASURES`; the answer is found by forward chaining over what was chosen."""
    found = evaluation.picked(row, choice)
    answered = follow("\n".join(passage.titled for passage in row.chosen(choice.ids)), row.question) in row.answers
    return (*(float(found[name] or 0.0) for name in MEASURES[:-1]), float(answered))


def picked(head: SelectorHead, data: Data, rng: np.random.Generator | None = None) -> Array:
    """(questions, measures) of the head's most likely picks, or of sampled ones."""
    order = head.pick(data.pools, rng).order
    chosen = [Chosen(tuple(row.passages[i].id for i in places)) for row, places in zip(data.rows, order, strict=True)]
    return np.array([measures(row, choice) for row, choice in zip(data.rows, chosen, strict=True)])


def study(pool: int, seeds: int) -> tuple[dict[str, Array], dict[tuple[str, int], Course], dict[str, float]]:
    """Arm -> (seeds, questions, measures); (variant, seed) -> course; variant -> mean processor seconds of a training."""
    train_rows, held_out_rows, test_rows = worlds(pool)
    data, held_out, test = Data(train_rows), Data(held_out_rows), Data(test_rows)
    arms: dict[str, Array] = {
        "untrained": np.array(
            [picked(SelectorHead.fresh(), test, np.random.default_rng(seed)) for seed in range(seeds)]
        ),
        "whole pool": np.array([[measures(row, full(row)) for row in test_rows]]),
    }
    for count in (1, 2, 3, 5):
        first = topk(count, ranker("bm25"))
        arms[f"BM25, top {count}"] = np.array([[measures(row, first(row)) for row in test_rows]])
    courses, seconds = {}, {}
    for name, variant in VARIANTS.items():
        found, started = [], time.process_time()
        for seed in range(seeds):
            head = SelectorHead.fresh(variant.rationale)
            courses[name, seed] = train(head, data, held_out, variant.training, seed)
            found.append(picked(head, test))
        arms[name], seconds[name] = np.array(found), (time.process_time() - started) / seeds
        print(
            f"pool {pool}, {name}: "
            + ", ".join(f"{m} {arms[name][..., i].mean():.3f}" for i, m in enumerate(MEASURES)),
            flush=True,
        )
    return arms, courses, seconds


def write(folder: Path, pool: int, seeds: int) -> None:
    arms, courses, seconds = study(pool, seeds)
    folder.mkdir(parents=True, exist_ok=True)
    lcqa_tables.write(folder / f"ablation_pool{pool}.csv", arms, MEASURES, seconds)
    lcqa_tables.write_pairs(folder / f"ablation_pairs_pool{pool}.csv", arms, PAIRS, MEASURES)
    with (folder / f"courses_pool{pool}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["arm", "seed", "step", "stage", "reward", "coverage", "size", "groups_without_spread"])
        for (name, seed), course in courses.items():
            rows = [row for row in course.steps if row[0] % 10 == 0]
            table.writerows([name, seed, *row[:2], *(f"{value:.4f}" for value in row[2:])] for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the tables go")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pools", type=int, nargs="+", default=[10, 30])
    given = parser.parse_args()
    for pool in given.pools:
        write(given.folder, pool, given.seeds)


if __name__ == "__main__":
    main()

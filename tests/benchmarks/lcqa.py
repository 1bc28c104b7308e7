"""What the evidence selector's parts without training cost on this machine.

    OMP_NUM_THREADS=1 python tests/benchmarks/lcqa.py                       # all, about 3 minutes
    OMP_NUM_THREADS=1 python tests/benchmarks/lcqa.py bm25 --passages 1_000_000

``bm25``: one index over passages of 80 words drawn by Zipf's law from 50,000; queries of 10 words from the same law, the 20
best each. Bound: 20 ms a query over 100,000 passages.
``engine``: mining with a generator that answers at once, answers stored on disk. Bound: 2,000 verdicts a second.
``calls``: 200 fact chains of two hops in pools of 100 passages, mined with forward chaining over their text as the generator;
calls, the empty set and the check of what was found among them, and time. Bound: 5 times fewer calls than the printed loop.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from budwood_lcqa_selector.answer_cache import AnswerCache
from budwood_lcqa_selector.asking import Asker
from budwood_lcqa_selector.computed import ComputedGenerator
from budwood_lcqa_selector.judges import Contains
from budwood_lcqa_selector.mining import Miner, Mining
from budwood_lcqa_selector.records import Passage, PoolRow
from budwood_lcqa_selector.retrieval import BM25, top
from budwood_lcqa_selector.worlds import SymbolicGenerator, fact_chain

WORDS, LENGTH, QUERY = 50_000, 80, 10


def bm25(passages: int) -> None:
    rng = np.random.default_rng(0)
    law = 1.0 / np.arange(1, WORDS + 1)
    names = np.array([f"w{i}" for i in range(WORDS)])

    def made(n: int, length: int) -> list[str]:
        return [" ".join(row) for row in names[rng.choice(WORDS, size=(n, length), p=law / law.sum())]]

    texts = [text for _ in range(passages // 1000) for text in made(1000, LENGTH)]
    queries = made(50, QUERY)
    began = time.process_time()
    index = BM25(texts)
    built = time.process_time() - began
    top(index.scores(queries[0]), 20)
    spent = []
    for query in queries:
        began = time.process_time()
        top(index.scores(query), 20)
        spent.append(1000 * (time.process_time() - began))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"bm25    {len(texts):,} passages: index {built:.1f} s; a query median {np.median(spent):.2f} ms, "
        f"95th percentile {np.quantile(spent, 0.95):.2f} ms; peak memory {memory:.2f} GB with the texts"
    )


class Instant(ComputedGenerator):
    """Right if and only if both gold words are there."""

    identity = {"generator": "instant"}  # noqa: RUF012

    def answer(self, passages: str, question: str) -> str:
        return "yes" if "gold1" in passages and "gold2" in passages else "no"


def engine(questions: int = 1000, k: int = 20) -> None:
    def rows() -> Iterator[PoolRow]:
        rng = np.random.default_rng(0)
        for i in range(questions):
            texts = [f"passage {j} of {i}" for j in range(k)]
            for name, j in zip(("gold1", "gold2"), rng.choice(k, 2, replace=False), strict=True):
                texts[j] += f" {name}"
            passages = tuple(Passage(id=f"p{j}", text=text) for j, text in enumerate(texts))
            yield PoolRow(qid=f"q{i}", question=f"question {i}", answers=("yes",), passages=passages)

    with tempfile.TemporaryDirectory() as folder:
        for word in ("fresh", "known"):
            with AnswerCache(Path(folder) / "answers.sqlite") as cache:
                asker = Asker(Instant(), Contains(), cache)
                began, wall = time.process_time(), time.perf_counter()
                found = list(Miner(asker, Mining(reask=0.0)).mine(rows()))
                cpu, wall = time.process_time() - began, time.perf_counter() - wall
            verdicts = sum(result.calls for result in found)
            print(
                f"engine  {word}: {verdicts:,} verdicts of {questions:,} questions, {asker.counts.calls:,} calls; "
                f"{verdicts / cpu:,.0f} a CPU second, {verdicts / wall:,.0f} a second"
            )


def calls(questions: int = 200, k: int = 100) -> None:
    rows = [fact_chain(seed, hops=2, pool=k, filler=0) for seed in range(questions)]
    loop = loop_wall = 0.0
    for strategy in ("loo", "quickxplain", "prefix"):
        asker = Asker(SymbolicGenerator(), Contains(), AnswerCache(None))
        began, wall = time.process_time(), time.perf_counter()
        found = list(Miner(asker, Mining(strategy, k, reask=0.0)).mine(rows))
        cpu, wall = time.process_time() - began, time.perf_counter() - wall
        for result, row in zip(found, rows, strict=True):
            assert result.row is not None
            assert set(result.row.gold_sets[0]) == set(row.gold_sets[0])
        total = asker.counts.calls
        loop, loop_wall = loop or total, loop_wall or wall
        print(
            f"calls   {strategy:12s} {total / questions:6.1f} a question; {loop / total:.1f} times fewer than the loop; "
            f"{wall:.1f} s, {loop_wall / wall:.1f} times faster; {cpu:.1f} CPU s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], "bm25", "engine", "calls"], default=[])
    parser.add_argument("--passages", type=int, default=100_000)
    options = parser.parse_args()
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for part in options.parts or ["bm25", "engine", "calls"]:
        if part == "bm25":
            bm25(options.passages)
        else:
            {"engine": engine, "calls": calls}[part]()


if __name__ == "__main__":
    main()

"""What it costs to read and score a picker's answers, and that reading is linear in the length of an answer.

python tests/benchmarks/picker.py
"""

from __future__ import annotations

import json
import platform
import random
import time
from collections.abc import Callable

from budwood.api import Completions
from budwood_lcqa_selector.parsing import parse
from budwood_lcqa_selector.scoring import PickerScore

ANSWERS, REPEATS = 1_000, 15
POOL = [f"p{i}" for i in range(1, 31)]
WORDS = ["the", "passage", "names", "founder", "of", "company", "and", "gives", "year", "which", "is", "needed"]


def answers(seed: int = 0) -> list[str]:
    """Rationales of about 200 words and 0 to 8 ids; one in ten is cut off, one in ten names an unknown id."""
    rng = random.Random(seed)
    found = []
    for i in range(ANSWERS):
        ids = rng.sample(POOL, rng.randint(0, 8)) + (["p99"] if i % 10 == 1 else [])
        text = json.dumps({"rationale": " ".join(rng.choices(WORDS, k=200)), "ids": ids})
        found.append(text[: len(text) // 2] if i % 10 == 0 else text)
    return found


def milliseconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Processor time of one call, the best of ``repeats``."""
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        call()
        best = min(best, time.process_time() - started)
    return 1e3 * best


def main() -> None:
    texts = answers()
    columns = {
        "pool_ids": [POOL] * ANSWERS,
        "pool_tokens": [[100] * len(POOL)] * ANSWERS,
        "gold_sets": [json.dumps([["p3", "p7"], ["p3", "p9"]])] * ANSWERS,
        "stage": [i % 2 for i in range(ANSWERS)],
        "pool_titles": [POOL] * ANSWERS,
        "question": ["?"] * ANSWERS,
        "qid": ["q"] * ANSWERS,
    }
    batch = Completions([""] * ANSWERS, texts, [[]] * ANSWERS, columns, 0, lambda name, value: None)
    print(f"Python {platform.python_version()}; ms of processor time, best of {REPEATS}")
    print(f"{'read and score 1,000 answers':42}{milliseconds(lambda: PickerScore()(batch)):8.1f}")
    print(f"{'read 1,000 answers':42}{milliseconds(lambda: [parse(text, POOL) for text in texts]):8.1f}")
    for shape, piece in {"braces": "{}", "nested objects": '{"a":', "escaped quotes": '"\\"'}.items():
        for think in (False, True):
            costs = []
            for size in (2**18, 2**20):
                text = piece * (size // len(piece))
                costs.append(milliseconds(lambda text=text, think=think: parse(text, POOL, think=think), 3))
            name = f"256 KB and 1 MB of {shape}{', thinking' if think else ''}"
            print(f"{name:42}{costs[0]:8.1f} {costs[1]:8.1f}")


if __name__ == "__main__":
    main()

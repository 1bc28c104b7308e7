"""At which cosine of neighbouring sentences a chunk should end, for an encoder: on passages set one after another.

    OMP_NUM_THREADS=1 BUDWOOD_DATA=... python tests/benchmarks/chunk_threshold.py docs/methods/lcqa_selector/chunk_threshold.csv

The 1,000 passages of 100 HotpotQA questions: a boundary is right between two passages and wrong inside one. The default of
``chunking.semantic`` is the threshold with the best F1 here. Three minutes.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

from budwood_models import load_encoder


def main() -> None:
    encoder = load_encoder("minilm")
    inside: list[float] = []
    across: list[float] = []
    lines = (Path(os.environ["BUDWOOD_DATA"]) / "lcqa" / "hotpotqa_distractor_100.jsonl").read_text().splitlines()
    for line in lines:
        passages = json.loads(line)["passages"]
        sentences = [(i, text.strip()) for i, p in enumerate(passages) for text in p["sentences"] if text.strip()]
        vectors = encoder.encode([text for _, text in sentences])
        cosines = np.einsum("sd,sd->s", vectors[:-1], vectors[1:])
        for cosine, ((first, _), (second, _)) in zip(cosines, pairwise(sentences), strict=True):
            (inside if first == second else across).append(float(cosine))
    rows = []
    for threshold in np.arange(0.05, 0.80, 0.05):
        right, wrong = sum(c < threshold for c in across), sum(c < threshold for c in inside)
        precision, recall = right / max(1, right + wrong), right / len(across)
        f1 = 2 * right / (right + wrong + len(across))
        rows.append([f"{value:.3f}" for value in (threshold, precision, recall, f1)])
        print("threshold {} precision {} recall {} F1 {}".format(*rows[-1]))
    print(f"{len(inside):,} neighbours inside a passage, {len(across):,} across two")
    if len(sys.argv) > 1:
        with Path(sys.argv[1]).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([["threshold", "precision", "recall", "f1"], *rows])


if __name__ == "__main__":
    main()

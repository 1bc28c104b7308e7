"""Bootstrap intervals of the studies, of arms and of differences between them, paired by seed and question."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from budwood.api import Array


def interval(values: Array) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of (seeds, questions) values; seeds and questions are drawn alike, 2,000 times."""
    rng = np.random.default_rng(0)
    seeds, questions = values.shape
    means = [
        values[rng.integers(seeds, size=seeds)][:, rng.integers(questions, size=questions)].mean() for _ in range(2_000)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def write_pairs(
    path: Path, arms: Mapping[str, Array], pairs: Sequence[tuple[str, str]], measures: Sequence[str]
) -> None:
    """One row for each (one, other) of ``pairs``: one minus other on the same seed and question, with intervals.

    ``arms``: name -> (seeds, questions, measures); an arm without chance has one seed. NaN: not measured for a question.
    """
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["arm", "seeds", "questions", *(f"{m}{end}" for m in measures for end in ("", "_low", "_high"))])
        for one, other in pairs:
            gaps = arms[one] - arms[other]  # (seeds, questions, measures)
            cells: list[str] = []
            for i in range(len(measures)):
                known = gaps[..., i][:, ~np.isnan(gaps[0, :, i])]
                cells += [f"{x:.4f}" for x in (known.mean(), *interval(known))]
            table.writerow([f"{one} minus {other}", *gaps.shape[:2], *cells])

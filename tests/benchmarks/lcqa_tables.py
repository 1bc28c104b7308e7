"""Tables of the studies, as CSV files and, from those, as Markdown: what the pages print is this, and a test holds them to it.

python tests/benchmarks/lcqa_tables.py docs/methods/lcqa_selector/ablation_pool10.csv
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from budwood.api import Array
from budwood_lcqa_selector.metrics import estimate

HEADINGS = {
    "evidence_recall": "recall",
    "evidence_precision": "precision",
    "evidence_f1": "F1",
    "covered": "all evidence",
    "size": "passages",
    "kept": "tokens kept",
    "tokens": "tokens",
    "answered": "answered",
    "has_answer": "has the answer",
}


def write(
    path: Path, arms: Mapping[str, Array], measures: Sequence[str], seconds: Mapping[str, float] | None = None
) -> None:
    """One row an arm: means with 95 % intervals over seeds and questions, and processor seconds where there are any.

    ``arms``: name -> (seeds, questions, measures); an arm without chance has one seed. NaN: not measured for a question.
    """
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        timed = [] if seconds is None else ["cpu_s"]
        ends = [f"{measure}{end}" for measure in measures for end in ("", "_low", "_high")]
        table.writerow(["arm", "seeds", "questions", *ends, *timed])
        for name, values in arms.items():
            cells = [cell for i in range(len(measures)) for cell in _estimated(values[..., i])]
            took = [] if seconds is None else [f"{seconds[name]:.1f}" if name in seconds else ""]
            table.writerow([name, *values.shape[:2], *cells, *took])


def write_pairs(
    path: Path, arms: Mapping[str, Array], pairs: Sequence[tuple[str, str]], measures: Sequence[str]
) -> None:
    """:func:`write` of one arm minus the other of every pair, on the same seed and question."""
    write(path, {f"{one} minus {other}": arms[one] - arms[other] for one, other in pairs}, measures)


def _estimated(values: Array) -> list[str]:
    known = values[:, ~np.isnan(values[0])]  # (seeds, questions)
    found = estimate(range(known.shape[1]), known)
    return [f"{number:.4f}" for number in (found.mean, found.low, found.high)]


def table(path: Path) -> list[str]:
    """One line an arm: means with 95 % intervals, and processor seconds of a training where they were measured."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    measured = [name for name in HEADINGS if name in rows[0]]
    timed = any(row.get("cpu_s") for row in rows)
    heads = ["arm", *(HEADINGS[name] for name in measured), *(["CPU s"] if timed else [])]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [_cell(*(float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))) for name in measured]
        lines.append(f"| {' | '.join([row['arm'], *cells, *([row['cpu_s']] if timed else [])])} |")
    return lines


def _cell(mean: float, low: float, high: float) -> str:
    digits = 0 if abs(mean) >= 20 else 2
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}\n\n" + "\n".join(table(Path(name))) + "\n")

"""Tables of the studies as Markdown, from their CSV files: what the pages print is this, and a test holds them to it.

python -m budwood_lcqa_selector.study_table docs/methods/lcqa_selector/ablation_pool10.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

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

"""The page of mining and baselines says what its data say: every row of its tables is made anew from the files beside it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "methods" / "lcqa_selector"
PAGE = (FOLDER / "mining.md").read_text()


def rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open() as file:
        return list(csv.DictReader(file))


def test_mining_is_quoted_as_measured() -> None:
    names = ("data", "questions", "strategy", "mined", "in_annotation", "calls", "calls_mined", "cpu_seconds")
    for row in rows("mining.csv"):
        assert f"| {' | '.join(row[name] for name in names)} |" in PAGE


def test_the_default_threshold_is_the_best_of_those_tried() -> None:
    from budwood_lcqa_selector.chunking import MINILM_THRESHOLD

    tried = rows("chunk_threshold.csv")
    best = max(tried, key=lambda row: float(row["f1"]))
    assert float(best["threshold"]) == MINILM_THRESHOLD
    assert f"| {' | '.join(best.values())} |" in PAGE


@pytest.mark.parametrize(
    "name", ["hotpotqa_distractor_100.budget_256", "ircot_hotpotqa.budget_256", "ircot_hotpotqa.smollm2"]
)
def test_baselines_are_quoted_as_measured(name: str) -> None:
    methods: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows(f"{name}.csv"):
        methods.setdefault(row["method"], {})[row["metric"]] = row
    for method, found in methods.items():
        cells = [f"{float(found['size']['mean']):.1f}", f"{float(found['tokens']['mean']):.0f}"]
        for metric in ("evidence_precision", "evidence_recall", "evidence_f1", "covered", "accuracy"):
            mean, low, high = (float(found[metric][key]) for key in ("mean", "low", "high"))
            cells.append(f"{mean:.3f} ({low:.2f} to {high:.2f})")
        assert f"| {method} | {' | '.join(cells)} |" in PAGE
        assert float(found["tokens"]["mean"]) <= 256

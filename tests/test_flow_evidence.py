"""The table of first runs on Hopper says what its rows say."""

from __future__ import annotations

import csv
from pathlib import Path

from budwood.study_config import load

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "methods" / "flow_rl.md").read_text()
ROWS = list(csv.DictReader((ROOT / "docs" / "methods" / "flow_rl" / "hopper" / "study.csv").open()))


def test_every_row_is_quoted_as_it_is() -> None:
    for row in ROWS:
        assert row["status"] == "finished"
        seconds = ", ".join(f"{float(row[part]):.2f}" for part in ("physics", "sampling", "update"))
        line = (
            f"| {row['variant']} | {float(row['return']):.0f} | {float(row['mean return']):.0f} | {seconds} "
            f"| {float(row['joint KL']):.2f} |"
        )
        assert line in PAGE, line
    minutes = sum(float(row["cpu_minutes"]) for row in ROWS)
    assert f"Cost: {minutes:.1f} CPU minutes" in PAGE


def test_only_the_shortcut_is_said_to_have_risen() -> None:
    best = max(ROWS, key=lambda row: float(row["return"]))
    assert best["variant"] == "reinflow-shortcut-K4"
    assert all(float(row["return"]) < 660 for row in ROWS if row is not best)


def test_what_is_missing_is_named() -> None:
    config = load(ROOT / "configs" / "studies" / "flow_rl_hopper.yaml").config
    assert set(config.variants) - {row["variant"] for row in ROWS} == {"dppo"}
    assert "DPPO and PPO from nothing" in PAGE

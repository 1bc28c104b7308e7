"""The tables of runs on Hopper say what their rows say."""

from __future__ import annotations

import csv
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import yaml

from budwood.study_config import load

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "methods" / "flow_rl.md").read_text()
HOPPER = ROOT / "docs" / "methods" / "flow_rl" / "hopper"
ROWS = list(csv.DictReader((HOPPER / "study.csv").open()))
SEARCH = list(csv.DictReader((HOPPER / "search.csv").open()))


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


def test_the_search_is_quoted_as_it_is() -> None:
    for variant, rows in groupby(SEARCH, key=itemgetter("variant")):
        seeds = list(rows)
        returns = "; ".join(
            f"{r['seed']}: {float(r['return_25600']):.0f}, {float(r['return_51200']):.0f}" for r in seeds
        )
        noisy = "; ".join(f"{float(r['noisy_return']):.0f}" for r in seeds)
        quoted = [
            line for line in PAGE.splitlines() if line.startswith(f"| {variant} | {seeds[0]['demonstrations']} |")
        ]
        assert [line.endswith(f"| {returns} | {noisy} |") for line in quoted] == [True], variant


def test_shipped_settings_are_those_that_the_search_ended_with() -> None:
    (found, _) = (row for row in SEARCH if row["variant"] == "early-most-updates")
    for name in ("flow_rl/hopper", "flow_rl/walker", "studies/flow_rl_hopper", "studies/flow_rl_walker"):
        config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
        args = config.get("base", config)["trainer"]["args"]
        for key in ("gamma", "n_steps", "batch_size", "learning_rate"):
            assert args[key] == float(found[key]), (name, key)


def test_what_is_missing_is_named() -> None:
    for name in ("flow_rl_hopper", "flow_rl_walker"):
        assert "ppo-scratch" in load(ROOT / "configs" / "studies" / f"{name}.yaml").config.variants
        assert f"{name}.yaml" in PAGE[PAGE.index("## What was not run") :]

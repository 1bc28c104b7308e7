"""The long run that is watched: its command line, and what it calls growth."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from soak import BOUND, COLUMNS, asked_for, drawing, growth


@pytest.mark.parametrize(
    "words",
    [
        ["run.yaml", "--hours", "2", "seed=1", "env.n_envs=4"],
        ["run.yaml", "seed=1", "--hours", "2", "env.n_envs=4"],
        ["--hours", "2", "run.yaml", "seed=1", "env.n_envs=4"],
    ],
)
def test_settings_stand_before_and_behind_the_options(words: list[str]) -> None:
    asked = asked_for(words)
    assert (asked.config, asked.hours, asked.overrides) == ("run.yaml", 2.0, ["seed=1", "env.n_envs=4"])


def test_growth_is_that_of_a_line_after_the_warm_up() -> None:
    rows = [{"seconds": 10.0 * i, "files": 500.0 if i < 25 else 100.0 + (i - 25) / 75} for i in range(101)]
    assert growth(rows, "files") == pytest.approx(0.01)


def test_the_page_quotes_the_samples_and_its_figure_is_drawn_from_them() -> None:
    pages = Path(__file__).parents[1] / "docs"
    with (pages / "reliability" / "soak.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    risen = {column: growth(rows, column) for column in COLUMNS[1:]}
    assert max(risen.values()) < BOUND
    shown = [f"{100 * risen[name]:+.2f} %" for name in ("trainer_mib", "children_mib", "files")]
    assert f"| growth | {' | '.join(shown)} | 0 % |" in (pages / "reliability.md").read_text()
    assert drawing(rows) == (pages / "reliability" / "soak.svg").read_text()

"""What is read off journals that are written by hand, and the tables made of it."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from budwood.folder import RunFolder
from budwood.grid import Cell
from budwood.journal import Journal
from budwood.study_config import MetricConfig, StudyConfig
from budwood.study_table import Measured, measure, points, tabulate, to_csv

HISTORY = {
    "P": ([10, 20, 30, 40], [0.2, 0.9, 0.4, math.nan]),
    "steps": ([10, 20, 30, 40], [110.0, 220.0, 330.0, 440.0]),
    "late": ([10, 25], [1.0, 2.0]),
}


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ({}, Measured(0.4)),
        ({"take": "last"}, Measured(0.4)),
        ({"take": "best"}, Measured(0.9)),
        ({"take": "best", "better": "lower"}, Measured(0.2)),
        ({"take": "mean"}, Measured(0.5)),
        ({"reaches": 0.9}, Measured(20.0)),
        ({"reaches": 0.9, "of": "steps"}, Measured(220.0)),
        ({"reaches": 0.15, "better": "lower"}, Measured(250.0, censored=True)),
        ({"reaches": 0.3, "better": "lower", "of": "steps"}, Measured(110.0)),
        ({"reaches": 0.95, "of": "steps"}, Measured(250.0, censored=True)),
    ],
)
def test_one_number_of_one_run(metric: dict[str, object], expected: Measured) -> None:
    assert measure(HISTORY, MetricConfig.model_validate({"metric": "P", **metric}), 250) == expected


def test_reached_after_the_budget_is_not_reached() -> None:
    metric = MetricConfig(metric="P", reaches=0.9, of="steps")
    assert measure(HISTORY, metric, 220) == Measured(220.0)
    assert measure(HISTORY, metric, 219) == Measured(219.0, censored=True)


def test_two_values_at_one_step_have_each_their_own_count() -> None:
    """An evaluation costs environment steps and no training step: the first reached in time, the second came after."""
    history = {"P": ([10, 20, 20, 30], [0.2, 0.9, 0.9, 0.9]), "steps": ([10, 20, 20], [110.0, 220.0, 260.0])}
    metric = MetricConfig(metric="P", reaches=0.9, of="steps")
    assert points(history, metric) == ([110.0, 220.0, 260.0], [0.2, 0.9, 0.9]), "the value at 30 has no count"
    assert measure(history, metric, 250) == Measured(220.0)


def test_what_was_never_logged_is_unknown_and_not_censored() -> None:
    found = measure(HISTORY, MetricConfig(metric="Q", reaches=1.0), 10)
    assert math.isnan(found.value)
    assert not found.censored
    assert points(HISTORY, MetricConfig(metric="late", of="steps")) == ([110.0], [1.0]), "25 has no count"


def cell(output: Path, variant: str, seed: int, values: list[float], status: str = "finished") -> Cell:
    run = RunFolder(output / f"{variant}-s{seed}")
    run.create()
    events = Journal(run.folder)
    for step, value in enumerate(values, start=1):
        events.metrics({"score": value}, step * 10)
    events.close()
    run.write_status(status=status, steps=10 * len(values), env_steps=12 * len(values), cpu_seconds=90.0, error=None)
    return Cell(variant, seed, run)


def config(**changes: object) -> StudyConfig:
    return StudyConfig.model_validate(
        {"base": {}, "budget": 25, "variants": {"a": None, "b": None},
         "metrics": {"score": {"metric": "score"}, "soon": {"metric": "score", "reaches": 2.0}}, **changes}
    )  # fmt: skip


def test_tables_count_finished_runs_only(tmp_path: Path) -> None:
    cells = [
        *(cell(tmp_path, "a", seed, [1.0, float(seed)]) for seed in range(6)),
        cell(tmp_path, "b", 0, [2.0]),
        cell(tmp_path, "b", 1, [5.0, 5.0], status="failed"),
        cell(tmp_path, "b", 2, [3.0, 9.0, 4.0], status="stopped"),
    ]
    tables = tabulate(config(), cells)
    rows = {(row["variant"], row["metric"]): row for row in tables.summary}
    assert rows["a", "score"] | {"low": 0, "high": 0} == {
        "variant": "a", "metric": "score", "n": 6, "iqm": 2.5, "low": 0, "high": 0, "mean": 2.5, "median": 2.5,
        "censored": None,
    }  # fmt: skip
    assert rows["a", "score"]["low"] < 2.5 < rows["a", "score"]["high"]
    assert (rows["b", "score"]["n"], rows["b", "score"]["mean"]) == (2, 3.0)
    assert np.isnan(rows["b", "score"]["low"])
    assert (rows["a", "soon"]["censored"], rows["a", "soon"]["mean"]) == (2, (25 + 25 + 4 * 20) / 6)
    chance = next(row for row in tables.pairs if row["metric"] == "score")
    assert (chance["x"], chance["y"], chance["n_x"], chance["n_y"]) == ("b", "a", 2, 6)
    assert chance["probability"] == pytest.approx((2.5 + 4.5) / 12)
    sooner = next(row for row in tables.pairs if row["metric"] == "soon")
    assert sooner["probability"] == 1.0, "10 steps are better than 20"
    failed = tables.cells[7]
    assert (failed["status"], failed["cpu_minutes"], failed["env_steps"]) == ("failed", 1.5, 24)
    assert math.isnan(failed["score"])
    assert failed["soon censored"] is None


def test_a_run_that_diverged_counts_with_what_it_had_and_is_named(tmp_path: Path) -> None:
    cells = [
        cell(tmp_path, "a", 0, [1.0, math.nan, 3.0]),
        cell(tmp_path, "a", 4, [1.0, 2.0, math.nan]),
        cell(tmp_path, "b", 1, [math.inf]),
        cell(tmp_path, "b", 2, [math.nan], status="failed"),
    ]
    tables = tabulate(config(), cells)
    assert tables.notes == [
        "variant a, seed 4: the last value of 'score' is nan; it counts with those before",
        "variant b, seed 1: the last value of 'score' is inf; it has no other",
    ]
    assert tables.scores["score"]["a"].tolist() == [3.0, 2.0]
    assert tables.scores["score"]["b"].tolist() == []


def test_curves_begin_where_all_have_begun_and_keep_the_last_value(tmp_path: Path) -> None:
    cells = [cell(tmp_path, "a", 0, [1.0, 2.0, 3.0, 4.0]), cell(tmp_path, "a", 1, [5.0])]
    (curve,) = tabulate(config(), cells).curves.values()
    assert (curve.x[0], curve.x[-1]) == (10, 40)
    assert (curve.estimate[0], curve.estimate[-1]) == (3.0, 4.5)


def test_csv_has_full_precision_and_blanks(tmp_path: Path) -> None:
    path = to_csv(tmp_path / "x.csv", [{"a": 1 / 3, "b": math.nan, "c": None, "d": True}])
    with path.open() as file:
        assert list(csv.DictReader(file)) == [{"a": repr(1 / 3), "b": "", "c": "", "d": "True"}]
    assert to_csv(tmp_path / "x.csv", []).read_text().strip() == ""

"""The page on training prints what its data say, and the data are of the studies as they are."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import pytest

from budwood_lcqa_selector.ablation import FULL, TESTED, VARIANTS
from budwood_lcqa_selector.study_table import table

FOLDER = Path(__file__).parents[3] / "docs" / "methods" / "lcqa_selector"
PAGE = FOLDER / "training.md"
TABLES = ("ablation_pool10", "ablation_pool30", "hotpotqa")


def rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_of_the_files(name):
    assert "\n".join(table(FOLDER / f"{name}.csv")) in PAGE.read_text()


@pytest.mark.parametrize("pool", [10, 30])
def test_every_training_is_there(pool):
    arms = {row["arm"]: row for row in rows(f"ablation_pool{pool}")}
    assert set(VARIANTS) <= set(arms)
    assert {arms[name]["seeds"] for name in VARIANTS} == {"5"}
    assert {row["questions"] for row in arms.values()} == {str(TESTED)}
    courses = defaultdict(list)
    for row in rows(f"courses_pool{pool}"):
        courses[row["arm"], row["seed"]].append(int(row["step"]))
    assert set(courses) == {(name, str(seed)) for name in VARIANTS for seed in range(5)}
    assert all(steps == list(range(10, FULL.steps + 1, 10)) for steps in courses.values())


def test_what_the_page_claims_of_pools_of_ten():
    f1, size, answered = (
        {row["arm"]: float(row[name]) for row in rows("ablation_pool10")}
        for name in ("evidence_f1", "size", "answered")
    )
    assert f1["full"] > max(f1["BM25, top 2"], f1["untrained"]) + 0.3
    assert size["full"] <= 2.01
    assert answered["no rationale"] < 0.4
    assert size["no redundancy term"] == 10
    assert abs(f1["no first stage"] - f1["full"]) < 0.01
    last_of_recall = [
        float(row["size"])
        for row in rows("courses_pool10")
        if row["arm"] == "full, as printed" and row["stage"] == "0" and row["step"] == "150"
    ]
    assert 4.4 < sum(last_of_recall) / len(last_of_recall) < 4.6


def test_what_the_page_claims_of_pools_of_thirty():
    f1 = {row["arm"]: float(row["evidence_f1"]) for row in rows("ablation_pool30")}
    assert f1["full, as printed"] > f1["full"] + 0.2
    assert f1["no first stage"] > f1["full"] + 0.1
    assert abs(f1["no first stage, as printed"] - f1["full, as printed"]) < 0.02
    early = [row for row in rows("courses_pool30") if row["step"] == "10"]

    def mean(arm: str, what: str) -> float:
        values = [float(row[what]) for row in early if row["arm"] == arm]
        return sum(values) / len(values)

    assert mean("full", "size") == pytest.approx(9.7, abs=0.05)
    assert mean("full", "groups_without_spread") == pytest.approx(0.9, abs=0.05)
    assert mean("full, as printed", "size") == pytest.approx(3.8, abs=0.05)


def test_what_the_page_claims_of_hotpotqa():
    found = {row["arm"]: row for row in rows("hotpotqa")}
    head, equal = found["head"], found["BM25 at the tokens of: head"]
    assert float(head["evidence_f1"]) > float(equal["evidence_f1"]) + 0.05
    assert float(head["covered"]) > float(equal["covered"]) + 0.1
    blind = found["head, no rationale"]
    assert float(blind["evidence_f1"]) <= float(found["BM25 at the tokens of: head, no rationale"]["evidence_f1"])
    assert (head["seeds"], head["questions"]) == ("5", "100")

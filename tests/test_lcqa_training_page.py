"""The page on training prints what its data say, and the data are of the studies as they are."""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "methods" / "lcqa_selector"
PAGE = FOLDER / "training.md"
TABLES = ("ablation_pool10", "ablation_pool30", "hotpotqa", "hotpotqa_pairs")

sys.path.append(str(ROOT / "tests" / "benchmarks"))
ablation, hotpotqa, tables = map(import_module, ("lcqa_ablation", "lcqa_hotpotqa", "lcqa_tables"))
sys.path.pop()


def rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def said(text: str) -> bool:
    return text in " ".join(PAGE.read_text().split())


def quoted(row: dict[str, str], measure: str, digits: int = 2) -> str:
    mean, low, high = (f"{float(row[measure + end]):.{digits}f}" for end in ("", "_low", "_high"))
    return f"{mean} ({low} to {high})"


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_of_the_files(name):
    assert "\n".join(tables.table(FOLDER / f"{name}.csv")) in PAGE.read_text()


@pytest.mark.parametrize("pool", [10, 30])
def test_every_training_is_there(pool):
    arms = {row["arm"]: row for row in rows(f"ablation_pool{pool}")}
    assert set(ablation.VARIANTS) <= set(arms)
    assert {arms[name]["seeds"] for name in ablation.VARIANTS} == {"5"}
    assert {row["questions"] for row in arms.values()} == {str(ablation.TESTED)}
    courses = defaultdict(list)
    for row in rows(f"courses_pool{pool}"):
        courses[row["arm"], row["seed"]].append(int(row["step"]))
    assert set(courses) == {(name, str(seed)) for name in ablation.VARIANTS for seed in range(5)}
    assert all(steps == list(range(10, ablation.FULL.steps + 1, 10)) for steps in courses.values())


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


def test_the_rationale_is_quoted_as_measured():
    ten, thirty = ({row["arm"]: row for row in rows(f"ablation_pool{pool}")} for pool in (10, 30))

    def mean(arms: dict[str, dict[str, str]], arm: str, measure: str) -> str:
        return f"{float(arms[arm][measure]):.2f}"

    one, other = (mean(ten, arm, "answered") for arm in ("no rationale", "full"))
    assert said(f"{one} of the questions are answered instead of {other}")
    f1, answered = (
        "{} instead of {}".format(*(mean(thirty, arm, measure) for arm in ("no rationale", "full")))
        for measure in ("evidence_f1", "answered")
    )
    assert said(f"F1 {f1} and answers {answered}, with intervals of the arms that overlap")
    for measure in ("evidence_f1", "answered"):
        low, high = thirty["full"][f"{measure}_low"], thirty["no rationale"][f"{measure}_high"]
        assert float(low) < float(high)
    later = "F1 {} instead of {}".format(*(mean(thirty, arm, "evidence_f1") for arm in ("no first stage", "full")))
    assert said(f"ends better, {later}")


def test_the_dead_first_stage_is_quoted_as_it_went():
    """Pools of thirty, arm full: what the last batch of the first stage looks like, and the run fifty steps on."""
    courses = [row for row in rows("courses_pool30") if row["arm"] == "full"]
    first = [row for row in courses if row["stage"] == "0"]
    last = max(int(row["step"]) for row in first)
    ends = [row for row in first if int(row["step"]) == last]
    assert len(ends) == 5, "the stage ends at the same step with every seed"
    assert last < ablation.FULL.stages[0].max_steps, "so a plateau ended it"
    sizes, flat, rewards = (
        sorted(float(row[name]) for row in ends) for name in ("size", "groups_without_spread", "reward")
    )
    assert said(f"after {last} steps, when all five seeds pick {sizes[0]:.2f} to {sizes[-1]:.2f} passages")
    assert said(f"{100 * flat[0]:.0f} to {100 * flat[-1]:.0f} % of their groups have no spread")
    assert said(f"mean rewards are {rewards[0]:.3f} to {rewards[-1]:.3f}")
    later = sorted(float(row["size"]) for row in courses if int(row["step"]) == 150)
    assert said(f"three seeds of five pick {later[0]:.1f} to {later[2]:.1f} passages, two still {later[3]:.1f} to")
    assert said(f"two still {later[3]:.1f} to {later[4]:.1f}.")
    untrained = next(row for row in rows("ablation_pool30") if row["arm"] == "untrained")
    assert said(f"rises from {float(untrained['size']):.1f} to 9.7")


def test_differences_on_hotpotqa_are_quoted_as_measured():
    found = {row["arm"]: row for row in rows("hotpotqa_pairs")}
    head = found["head minus BM25 at the tokens of: head"]
    parts = [f"{name} {quoted(head, m)}" for name, m in (("recall", "evidence_recall"), ("F1", "evidence_f1"))]
    assert said(f"{', '.join(parts)} and all evidence {quoted(head, 'covered')} more")
    assert said(f"it spends {quoted(head, 'tokens', 1)} tokens more")
    blind = found["head, no rationale minus BM25 at the tokens of: head, no rationale"]
    assert said(f"not better than BM25 (F1 {quoted(blind, 'evidence_f1')})")
    assert said(f"(F1 {quoted(found['head minus head, no rationale'], 'evidence_f1')} between the two)")
    adaptive = found["head minus adaptive-k"]
    assert said(f"(recall {quoted(adaptive, 'evidence_recall')})")
    assert said(f"fewer tokens is open, {quoted(adaptive, 'tokens', 0)}.")


def test_differences_are_those_of_the_arms():
    arms, pairs = ({row["arm"]: row for row in rows(name)} for name in ("hotpotqa", "hotpotqa_pairs"))
    assert set(pairs) == {f"{one} minus {other}" for one, other in hotpotqa.PAIRS}
    for one, other in hotpotqa.PAIRS:
        for measure in hotpotqa.MEASURES:
            gap = float(arms[one][measure]) - float(arms[other][measure])
            assert float(pairs[f"{one} minus {other}"][measure]) == pytest.approx(gap, abs=2e-4)

"""The page on training prints what its data say, and the data are of the studies as they are."""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest

from budwood_lcqa_selector.head import MOST, SelectorHead
from budwood_lcqa_selector.head_features import PLAIN, REASONED, STOP_PLAIN, STOP_REASONED

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "methods" / "lcqa_selector"
PAGE = FOLDER / "training.md"
TABLES = (
    *(f"ablation{kind}_pool{pool}" for kind in ("", "_pairs") for pool in (10, 30)),
    *("hotpotqa", "hotpotqa_pairs"),
)

sys.path.append(str(ROOT / "tests" / "benchmarks"))
ablation, hotpotqa, tables = map(import_module, ("lcqa_ablation", "lcqa_hotpotqa", "lcqa_tables"))
sys.path.pop()


def rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def arms(name: str) -> dict[str, dict[str, str]]:
    return {row["arm"]: row for row in rows(name)}


def said(text: str) -> bool:
    return text in " ".join(PAGE.read_text().split())


def quoted(row: dict[str, str], measure: str, digits: int = 2) -> str:
    mean, low, high = (f"{float(row[measure + end]):.{digits}f}" for end in ("", "_low", "_high"))
    return f"{mean} ({low} to {high})"


def mean(row: dict[str, str], measure: str) -> str:
    return f"{float(row[measure]):.2f}"


def course(pool: int, arm: str, step: int, what: str) -> list[float]:
    """Of every seed, sorted."""
    found = [row for row in rows(f"courses_pool{pool}") if row["arm"] == arm and row["step"] == str(step)]
    assert len(found) == 5
    return sorted(float(row[what]) for row in found)


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


def test_the_policy_and_its_training_are_as_the_page_says():
    names = SelectorHead.names(True)
    assert len(names) == 9
    assert said("selector head** of nine weights")
    assert (len(PLAIN), len(REASONED), len(STOP_PLAIN + STOP_REASONED)) == (2, 4, 3)
    assert said("Two features look at the question alone")
    assert said("four at what has been picked so far")
    assert said("three decide about stopping")
    full, (wide, tight) = ablation.FULL, ablation.FULL.stages
    assert said(
        f"Groups of {full.group} picks, {full.questions} questions a step, {full.steps} steps, Adam with {full.rate}"
    )
    assert said(
        f"`{wide.name}` (red {wide.red}) until the greedy reward on {ablation.HELD_OUT} held-out questions stops"
    )
    assert said(f"at most {wide.max_steps} steps, then `{tight.name}` (red {tight.red}). Mode `{full.mode}`, ")
    assert said(f" = {full.gamma}. **A small language model")
    assert said(f"{ablation.TRAINED} questions to train on, {ablation.TESTED} others to test, five seeds")
    assert ablation.HOPS == (1, 2, 3)


def test_training_works_as_quoted():
    ten = arms("ablation_pool10")
    assert round(float(ten["full"]["size"])) == 2
    assert round(float(ten["untrained"]["size"])) == 5
    assert said("untrained head samples five of ten passages")
    assert said("picks two passages where the untrained head picks five")
    gap = arms("ablation_pairs_pool10")["full minus BM25, top 2"]
    assert float(gap["size_low"]) < 0 < float(gap["size_high"]), "as many passages as the two of BM25"
    assert said(f"F1 is {quoted(gap, 'evidence_f1')} higher and {quoted(gap, 'answered')} more of the questions")
    gap = arms("ablation_pairs_pool30")["full minus BM25, top 2"]
    assert float(gap["size_high"]) < 0
    assert said(f"F1 is {quoted(gap, 'evidence_f1')} higher, with fewer passages; of answers that is open")
    assert said(f"of answers that is open, {quoted(gap, 'answered')}")
    assert float(gap["answered_low"]) < 0 < float(gap["answered_high"])


def test_the_rationale_is_quoted_as_measured():
    def instead(pool: int, measure: str) -> tuple[str, str]:
        found = arms(f"ablation_pool{pool}")
        return mean(found["no rationale"], measure), mean(found["full"], measure)

    ten, thirty = (arms(f"ablation_pairs_pool{pool}")["full minus no rationale"] for pool in (10, 30))
    one, other = instead(10, "answered")
    assert said(f"{one} of the questions are answered instead of {other}, paired {quoted(ten, 'answered')}")
    f1, answered = ("{} instead of {}".format(*instead(30, measure)) for measure in ("evidence_f1", "answered"))
    assert said(
        f"F1 {f1}, paired {quoted(thirty, 'evidence_f1')}, and answers {answered}, paired {quoted(thirty, 'answered')}"
    )
    assert min(float(thirty[f"{measure}_low"]) for measure in ("evidence_f1", "answered")) > 0


def test_without_the_redundancy_term_all_that_may_be_is_picked():
    for pool in (10, 30):
        assert min(course(pool, "no redundancy term", 50, "size")) > 9.8
        found = arms(f"ablation_pool{pool}")["no redundancy term"]
        assert (float(found["size"]), float(found["answered"])) == (MOST, 1)
    assert said("as many as it may, ten, within 50 steps. All answers are then right")


def test_the_first_stage_is_quoted_as_measured():
    ten, thirty = (arms(f"ablation_pairs_pool{pool}")["full minus no first stage"] for pool in (10, 30))
    assert said(f"makes no difference here, F1 {quoted(ten, 'evidence_f1')}:")
    assert float(ten["evidence_f1_low"]) <= 0 <= float(ten["evidence_f1_high"])
    found = arms("ablation_pool30")
    f1 = f"F1 {mean(found['no first stage'], 'evidence_f1')} instead of {mean(found['full'], 'evidence_f1')}"
    assert said(
        f"ends better, {f1}, paired {quoted(thirty, 'evidence_f1')}; of answers that is open, {quoted(thirty, 'answered')}"
    )
    assert float(thirty["evidence_f1_high"]) < 0 < float(thirty["answered_high"])


def test_the_dead_first_stage_is_quoted_as_it_went():
    """Pools of thirty, arm full: dead for a hundred steps, and what comes back of it."""
    untrained = arms("ablation_pool30")["untrained"]
    early = sum(course(30, "full", 10, "size")) / 5
    assert said(
        f"mean size rises from {float(untrained['size']):.1f} to {early:.1f} of at most ten, and nine groups in ten"
    )
    assert sum(course(30, "full", 10, "groups_without_spread")) / 5 == pytest.approx(0.9, abs=0.05)
    sizes, flat, rewards = (course(30, "full", 100, name) for name in ("size", "groups_without_spread", "reward"))
    assert said(f"after 100 steps all five seeds pick {sizes[0]:.2f} to {sizes[-1]:.2f} passages")
    assert said(f"{100 * flat[0]:.0f} to {100 * flat[-1]:.0f} % of their groups have no spread")
    assert said(f"mean rewards are {rewards[0]:.3f} to {rewards[-1]:.3f}")
    last = ablation.FULL.stages[0].max_steps
    assert course(30, "full", last, "stage") == [0] * 5
    assert course(30, "full", last + 10, "stage") == [1] * 5
    sizes, rewards = (course(30, "full", last, name) for name in ("size", "reward"))
    assert said(f"so the stage goes on to its {last} steps. By then three seeds of five have come back")
    assert said(f"with {sizes[0]:.1f} to {sizes[2]:.1f} passages and a reward of {rewards[2]:.2f} to {rewards[4]:.2f}")
    assert said(f"two still pick {sizes[3]:.1f} to {sizes[4]:.1f}.")
    sizes = course(30, "full", ablation.FULL.steps, "size")
    assert said(f"In the second stage all five do, and end at {sizes[0]:.1f} to {sizes[-1]:.1f}.")
    sizes = course(30, "no first stage", 100, "size")
    assert said(f"three seeds are back after 100 steps, at {sizes[0]:.1f} to {sizes[2]:.1f} passages")
    assert sizes[3] > 9


def test_the_reading_as_printed_is_quoted_as_measured():
    assert said(f"the mean size is {sum(course(30, 'full, as printed', 10, 'size')) / 5:.1f} after ten steps")
    found, pairs = arms("ablation_pool30"), arms("ablation_pairs_pool30")
    f1 = f"{mean(found['full, as printed'], 'evidence_f1')} against {mean(found['full'], 'evidence_f1')}"
    assert said(f"F1 of {f1}, paired {quoted(pairs['full, as printed minus full'], 'evidence_f1')}")
    ten, thirty = (sum(course(pool, "full, as printed", 150, "size")) / 5 for pool in (10, 30))
    assert course(10, "full, as printed", 150, "stage") == course(30, "full, as printed", 150, "stage") == [0] * 5
    assert said(f"settles at {ten:.1f} passages in pools of ten and {thirty:.1f} in pools of thirty")
    assert {round(float(arms(f"ablation_pool{pool}")["full, as printed"]["size"])) for pool in (10, 30)} == {2}
    name = "full, as printed minus no first stage, as printed"
    ten, thirty = (quoted(arms(f"ablation_pairs_pool{pool}")[name], "evidence_f1") for pool in (10, 30))
    assert said(f"with it F1 is {ten} in pools of ten and {thirty} in pools of thirty")


def test_what_the_page_claims_of_hotpotqa():
    found = {row["arm"]: row for row in rows("hotpotqa")}
    head, equal = found["head"], found["BM25 at the tokens of: head"]
    assert float(head["evidence_f1"]) > float(equal["evidence_f1"]) + 0.05
    assert float(head["covered"]) > float(equal["covered"]) + 0.1
    blind = found["head, no rationale"]
    assert float(blind["evidence_f1"]) <= float(found["BM25 at the tokens of: head, no rationale"]["evidence_f1"])
    assert (head["seeds"], head["questions"]) == ("5", "100")
    covered = [f"{100 * float(row['covered']):.0f}" for row in (head, equal)]
    assert said("all of it for {} questions in 100 instead of {}".format(*covered))
    assert round(float(head["size"])) == 2
    assert float(head["tokens"]) / float(found["whole pool"]["tokens"]) == pytest.approx(1 / 6, abs=0.01)
    assert said("two passages of ten and a sixth of the text")


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


@pytest.mark.parametrize(
    ("kind", "study"),
    [("ablation{}_pool10", "ablation"), ("ablation{}_pool30", "ablation"), ("hotpotqa{}", "hotpotqa")],
)
def test_differences_are_those_of_the_arms(kind, study):
    found, pairs = arms(kind.format("")), arms(kind.format("_pairs"))
    study = {"ablation": ablation, "hotpotqa": hotpotqa}[study]
    assert set(pairs) == {f"{one} minus {other}" for one, other in study.PAIRS}
    for one, other in study.PAIRS:
        for measure in study.MEASURES:
            gap = float(found[one][measure]) - float(found[other][measure])
            assert float(pairs[f"{one} minus {other}"][measure]) == pytest.approx(gap, abs=2e-4)

"""The model of scaling at its closed forms, against brute force, and the page of scaling against its tables."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
from scaling_model import (
    Iteration,
    Line,
    Link,
    all_gather,
    all_reduce,
    largest_of_normals,
    line,
    most_rows,
    seconds,
)
from scaling_tables import GPU, figure, page, predicted, read, tasks

FREE = Link("free", 0.0, np.inf)
SLOW = Link("slow", 1e-3, 1e6)
NOTHING = Line(0.0)
WORK = Iteration(64, 100, 6400, 2, 4e6, NOTHING, NOTHING, NOTHING, NOTHING)
"""One minibatch an epoch, all rows in it: every process has exactly its share."""


def speedup(work: Iteration, p: int, link: Link, serial: float = 0.0) -> float:
    return seconds(work, 1, link, serial).total / seconds(work, p, link, serial).total


@pytest.mark.parametrize("p", [1, 2, 8, 64])
def test_work_that_is_divided_and_free_exchanges_are_p_times_as_fast(p: int) -> None:
    assert speedup(replace(WORK, simulate=Line(0.0, 1e-3), learn=Line(0.0, 1e-5)), p, FREE) == pytest.approx(p)


@pytest.mark.parametrize("p", [2, 64])
def test_work_that_is_repeated_or_done_by_one_is_as_fast_as_in_one(p: int) -> None:
    for part in ("act", "draw"):
        assert speedup(replace(WORK, **{part: Line(1e-3, 1e-4)}), p, FREE) == 1
    assert speedup(replace(WORK, rest=1.0), p, FREE) == 1
    assert speedup(WORK, p, FREE, serial=1.0) == 1


@pytest.mark.parametrize("p", [2, 8, 1024])
def test_a_serial_part_bounds_it_as_amdahl_has_it(p: int) -> None:
    work = replace(WORK, simulate=Line(0.0, 1e-3))
    parallel = seconds(work, 1, FREE).total
    serial = parallel / 9  # a tenth of all
    assert speedup(work, p, FREE, serial) == pytest.approx(1 / (0.1 + 0.9 / p))


def test_a_ring_takes_its_steps_and_sends_its_bytes() -> None:
    """Counted: in each of 2 (p - 1) steps every process sends one of p chunks."""
    for p, size in itertools.product((2, 3, 8), (0, 6_000_000)):
        chunk = size / p
        assert all_reduce(size, p, SLOW) == pytest.approx(sum(1e-3 + chunk / 1e6 for _ in range(2 * (p - 1))))
        assert all_gather(size, p, SLOW) == pytest.approx(sum(1e-3 + size / 1e6 for _ in range(p - 1)))
    assert all_reduce(1e6, 1, SLOW) == all_gather(1e6, 1, SLOW) == 0
    assert all_reduce(1e6, 10_000, replace(SLOW, latency=0.0)) == pytest.approx(2, rel=1e-3), "2 S / w, whatever p"


def test_a_tree_is_taken_where_latency_counts_and_a_ring_where_bytes_do() -> None:
    either = Link("either", 1e-5, 1e10, "ring or tree")
    ring = replace(either, algorithm="ring")
    assert all_reduce(4, 1024, either) == pytest.approx(20e-5, rel=1e-3)
    assert all_reduce(4, 1024, ring) > 100 * all_reduce(4, 1024, either)
    assert all_reduce(1e9, 4, either) == all_reduce(1e9, 4, ring)


def test_the_fullest_part_of_a_minibatch_is_that_of_drawing_it() -> None:
    rng = np.random.default_rng(0)
    for total, batch, p in ((2_048, 256, 2), (2_048, 256, 8), (512, 64, 4)):
        owner = np.repeat(np.arange(p), total // p)
        counts = [np.bincount(owner[rng.permutation(total)[:batch]], minlength=p).max() for _ in range(4_000)]
        assert most_rows(batch, p, total) == pytest.approx(np.mean(counts), rel=0.02)
    assert most_rows(64, 1, 512) == 64
    assert most_rows(512, 4, 512) == 128, "all rows: nothing is left to chance"


def test_the_largest_of_normals() -> None:
    assert largest_of_normals(1) == pytest.approx(0, abs=1e-9)
    assert largest_of_normals(2) == pytest.approx(np.pi**-0.5, rel=1e-4)
    assert largest_of_normals(3) == pytest.approx(1.5 * np.pi**-0.5, rel=1e-4)


def test_a_line_is_found_again_and_has_no_part_below_zero() -> None:
    found = line([2, 4, 8, 32], [5 + 3 * n for n in (2, 4, 8, 32)])
    assert (found.fixed, found.each) == pytest.approx((5, 3))
    assert line([1, 2, 4], [1, 2.5, 6]).fixed == 0
    assert line([1, 2, 4], [3, 2, 1]).each == 0


# ---- the page --------------------------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[1] / "docs"
TABLES = read(DOCS / "scaling")
PAGE = (DOCS / "scaling.md").read_text()
COMPUTED = page(TABLES, GPU)


@pytest.mark.parametrize("heading", COMPUTED)
def test_every_table_is_what_its_rows_say(heading: str) -> None:
    assert COMPUTED[heading] in PAGE


@pytest.mark.parametrize("task", tasks(TABLES))
def test_two_are_not_among_what_two_are_predicted_from(task: str) -> None:
    """Whatever two processes took, the prediction is the same; only the bytes of an exchange are read of them."""
    told = predicted(TABLES, task)
    slower = [{**row, "two": 10 * row["two"]} for row in TABLES["rounds"]]
    times = ("whole", "simulate", "act", "draw", "learn", "sums", "gathers", "cpu")
    split = [{**row, **{t: 10 * row[t] for t in times}} if row["job"] == "two" else row for row in TABLES["split"]]
    np.testing.assert_array_equal(predicted({**TABLES, "rounds": slower, "split": split}, task), told)


def test_the_figure_is_drawn_from_the_tables() -> None:
    assert (DOCS / "scaling" / "scaling.svg").read_text() == figure(TABLES)

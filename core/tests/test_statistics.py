"""Against closed forms on tiny cases, SciPy on random ones, simulation for coverage, and rliable where it is installed."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from budwood import statistics
from budwood.statistics import carried_forward, curve, improvement, improvement_probability, interval, iqm, profile


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261126)


# ---- the interquartile mean --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], 3.0),
        ([1.0, 2.0, 6.0], 3.0),  # floor(3 / 4) = 0 values are cut
        ([100.0, 2.0, 3.0, -50.0], 2.5),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 700.0], 3.5),
    ],
)
def test_iqm_in_closed_form(values: list[float], expected: float) -> None:
    assert float(iqm(np.array(values))) == pytest.approx(expected)
    assert interval(np.array(values)).estimate == pytest.approx(expected)


def test_iqm_cuts_over_all_tasks_together(rng: np.random.Generator) -> None:
    scores = rng.normal(size=(10, 7))
    ordered = np.sort(scores.ravel())[17:-17]
    assert interval(scores).estimate == pytest.approx(ordered.mean())


# ---- its interval ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [5, 10, 30])
def test_the_interval_is_scipys_percentile_bootstrap(runs: int, rng: np.random.Generator) -> None:
    scores = rng.gamma(2.0, size=runs)
    ours = interval(scores, resamples=40_000)
    theirs = stats.bootstrap(
        (scores,), lambda x, axis: stats.trim_mean(x, 0.25, axis=axis), n_resamples=40_000, method="percentile", rng=rng
    ).confidence_interval
    spread = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * spread)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * spread)


def test_every_task_draws_from_its_own_runs(rng: np.random.Generator) -> None:
    """Tasks far apart: resampled across tasks, the mean would vary by hundreds."""
    scores = np.array([0.0, 1000.0]) + rng.normal(size=(8, 2))

    def mean(values: Any) -> Any:
        return values.mean(axis=-1)

    found = interval(scores, mean)
    assert found.high - found.low < 3
    drawn = statistics.resampled(scores, 50, rng)
    for task in range(2):
        assert set(drawn[..., task].ravel()) <= set(scores[:, task])


def test_all_resamples_of_a_tiny_case() -> None:
    """Five runs of 0 or 1: the mean of a resample is binomial, so the ends are its quantiles."""
    found = interval(np.array([0.0, 0.0, 1.0, 1.0, 1.0]), lambda values: values.mean(axis=-1), resamples=40_000)
    low, high = stats.binom.ppf([0.025, 0.975], 5, 0.6) / 5
    assert (found.estimate, found.low, found.high) == pytest.approx((0.6, low, high))


def test_the_same_scores_give_the_same_interval_and_few_give_none(rng: np.random.Generator) -> None:
    scores = rng.normal(size=9)
    assert interval(scores) == interval(scores)
    few = interval(scores[:4])
    assert np.isfinite(few.estimate)
    assert np.isnan([few.low, few.high]).all()


@pytest.mark.parametrize("bad", [np.array([]), np.array([1.0, np.nan]), np.ones((2, 2, 2))])
def test_what_is_no_score_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="expected finite scores"):
        interval(bad)


@pytest.mark.parametrize(("runs", "least"), [(10, 0.85), (30, 0.90)])
def test_coverage(runs: int, least: float, rng: np.random.Generator) -> None:
    """How often the interval holds the true value, here 0 by symmetry: near 95 %, less with few runs, as is known."""
    trials = 400
    held = 0
    for _ in range(trials):
        found = interval(rng.normal(size=runs), resamples=400)
        held += found.low <= 0 <= found.high
    assert least <= held / trials <= 0.985


# ---- probability of improvement ----------------------------------------------------------------------------------------


def test_improvement_counts_pairs() -> None:
    x, y = [1.0, 3.0, 3.0], [2.0, 3.0]
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(x, y)]
    assert improvement(np.array(x), np.array(y)).estimate == pytest.approx(sum(pairs) / 6)


def test_improvement_is_mann_whitney(rng: np.random.Generator) -> None:
    x, y = rng.integers(0, 8, size=(12, 3)).astype(float), rng.integers(0, 8, size=(9, 3)).astype(float)
    expected = np.mean([stats.mannwhitneyu(x[:, t], y[:, t]).statistic / (12 * 9) for t in range(3)])
    assert improvement(x, y).estimate == pytest.approx(expected)
    swapped = improvement(y, x).estimate
    assert improvement(x, y).estimate + swapped == pytest.approx(1.0)


def test_the_interval_of_improvement(rng: np.random.Generator) -> None:
    x, y = rng.normal(0.7, size=15), rng.normal(size=12)
    ours = improvement(x, y, resamples=20_000)
    theirs = stats.bootstrap(
        (x, y),
        lambda a, b, axis: improvement_probability(a[..., None], b[..., None]),
        n_resamples=20_000,
        method="percentile",
        rng=rng,
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    apart = improvement(x + 100, y)
    assert (apart.estimate, apart.low, apart.high) == (1.0, 1.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "least"), [(5, 0.7), (10, 0.85)])
def test_coverage_of_improvement(runs: int, least: float, rng: np.random.Generator) -> None:
    """Normal scores, the one better with a probability of 0.86; what is measured stands in docs/studies.md."""
    true, trials = 0.86, 2_000
    shift = np.sqrt(2) * stats.norm.ppf(true)
    held = 0
    for _ in range(trials):
        found = improvement(rng.normal(shift, size=runs), rng.normal(size=runs), resamples=400)
        held += found.low <= true <= found.high
    assert least < held / trials <= 0.985


# ---- profiles and curves -----------------------------------------------------------------------------------------------


def test_profile_is_the_share_that_reaches_a_threshold() -> None:
    scores = np.array([0.0, 0.5, 0.5, 1.0])
    thresholds = np.array([-1.0, 0.0, 0.5, 0.75, 1.0, 2.0])
    assert profile(scores, thresholds).estimate.tolist() == [1.0, 1.0, 0.75, 0.25, 0.25, 0.0]
    lower = profile(scores, thresholds, lower_is_better=True)
    assert lower.estimate.tolist() == [0.0, 0.25, 0.75, 0.75, 1.0, 1.0]
    assert np.isnan(lower.low).all(), "four runs are too few for a band"


def test_the_band_of_a_profile_is_binomial(rng: np.random.Generator) -> None:
    """The share of resampled runs above a threshold is binomial."""
    scores = np.arange(10.0)
    band = profile(scores, np.array([3.0]), resamples=40_000)
    expected = stats.binom.ppf([0.025, 0.975], 10, 0.7) / 10
    assert (band.low[0], band.high[0]) == pytest.approx(tuple(expected))


def test_a_curve_is_the_iqm_at_every_point(rng: np.random.Generator) -> None:
    values = rng.normal(size=(10, 4))
    band = curve(np.arange(4.0), values, resamples=20_000)
    assert band.estimate == pytest.approx(stats.trim_mean(values, 0.25, axis=0))
    point = interval(values[:, 2], resamples=20_000)
    assert (band.low[2], band.high[2]) == pytest.approx((point.low, point.high), abs=0.05)
    assert np.isnan(curve(np.arange(4.0), values[:3]).low).all()


def test_a_value_lasts_until_the_next_one() -> None:
    at = np.array([0.0, 10.0, 15.0, 20.0, 99.0])
    held = carried_forward([10, 20, 20], [1.0, 2.0, 3.0], at)
    assert np.array_equal(held, [np.nan, 1.0, 1.0, 3.0, 3.0], equal_nan=True)


# ---- the field's own library -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rliable_says_the_same(rng: np.random.Generator) -> None:
    library = pytest.importorskip("rliable.library")
    metrics = pytest.importorskip("rliable.metrics")
    x, y = rng.normal(0.4, size=(10, 5)), rng.normal(size=(8, 5))

    points, ends = library.get_interval_estimates({"x": x}, lambda s: np.array([metrics.aggregate_iqm(s)]), reps=10_000)
    ours = interval(x, resamples=10_000)
    assert ours.estimate == pytest.approx(points["x"][0])
    assert (ours.low, ours.high) == pytest.approx(tuple(ends["x"][:, 0]), abs=0.02)

    both = {"pair": (x, y)}
    points, ends = library.get_interval_estimates(both, metrics.probability_of_improvement, reps=3_000)
    better = improvement(x, y, resamples=10_000)
    assert better.estimate == pytest.approx(points["pair"])
    assert (better.low, better.high) == pytest.approx(tuple(ends["pair"].ravel()), abs=0.02)

    thresholds = np.linspace(-2.03, 2.03, 9)
    shares, bands = library.create_performance_profile({"x": x}, thresholds, reps=2_000)
    band = profile(x, thresholds)
    assert band.estimate == pytest.approx(shares["x"])
    assert np.stack([band.low, band.high]) == pytest.approx(bands["x"], abs=0.03)

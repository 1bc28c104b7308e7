"""Statistics over repeated runs: interquartile mean, bootstrap intervals, performance profiles, probability of improvement.

The methods are those of Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice". Scores
are arrays (S, T): S runs of each of T tasks; a study of one task has T = 1. Whatever is random here comes from a fixed
seed, so the same scores give the same figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from budwood.api import Array

LEVEL = 0.95
RESAMPLES = 5_000
FEW = 5
"""With fewer runs a task no interval is given: resampling so few values says little about others."""


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval; NaN where there are too few runs for one."""

    estimate: float
    low: float
    high: float


def iqm(scores: Array, axis: int | None = None) -> Array:
    """Interquartile mean: the mean after floor(n / 4) of the n values were cut from each end.

    ``axis`` None takes all values together, as over the runs of all tasks.
    """
    from scipy.stats import trim_mean  # type: ignore[import-untyped]

    return np.asarray(trim_mean(scores, 0.25, axis=axis))


def resampled(scores: Array, resamples: int, rng: np.random.Generator) -> Array:
    """(S, T) -> (R, S, T): in each resample, every task draws S of its own runs with replacement (stratified)."""
    index = rng.integers(len(scores), size=(resamples, *scores.shape))
    return np.take_along_axis(scores[None], index, axis=1)


def interval(
    scores: Array,
    statistic: Callable[[Array], Array] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Interval:
    """Stratified percentile-bootstrap interval of ``statistic``, which maps (..., S * T) to (...); default: the IQM."""
    statistic = statistic or _iqm_of_last
    scores = _checked(scores)
    estimate = float(statistic(scores.reshape(1, -1))[0])
    if len(scores) < FEW:
        return Interval(estimate, np.nan, np.nan)
    drawn = resampled(scores, resamples, np.random.default_rng(0))
    return Interval(estimate, *_ends(statistic(drawn.reshape(resamples, -1)), level))


def improvement_probability(x: Array, y: Array) -> Array:
    """P(a run of ``x`` scores higher than one of ``y``), ties counting half: U / (S S') of Mann and Whitney, mean over tasks.

    ``x`` (..., S, T), ``y`` (..., S', T) -> (...).
    """
    from scipy.stats import mannwhitneyu

    u = mannwhitneyu(x, y, axis=-2, method="asymptotic").statistic
    return np.asarray(np.mean(u / (x.shape[-2] * y.shape[-2]), axis=-1))


def improvement(x: Array, y: Array, *, level: float = LEVEL, resamples: int = RESAMPLES) -> Interval:
    """:func:`improvement_probability` with its interval, both sides resampled."""
    x, y = _checked(x), _checked(y)
    estimate = float(improvement_probability(x, y))
    if min(len(x), len(y)) < FEW:
        return Interval(estimate, np.nan, np.nan)
    rng = np.random.default_rng(0)
    drawn = improvement_probability(resampled(x, resamples, rng), resampled(y, resamples, rng))
    return Interval(estimate, *_ends(drawn, level))


@dataclass(frozen=True)
class Band:
    """(N,) values over (N,) ``x`` with a pointwise interval, NaN where there are too few runs."""

    x: Array
    estimate: Array
    low: Array
    high: Array


def profile(
    scores: Array, thresholds: Array, *, lower_is_better: bool = False, level: float = LEVEL, resamples: int = RESAMPLES
) -> Band:
    """Performance profile: for each of (N,) thresholds the share of runs that score at least as well, with its band."""
    scores = _checked(scores)

    def share(values: Array) -> Array:
        """(..., S, T) -> (..., N), one threshold at a time to spare memory."""
        reached = [values <= limit if lower_is_better else values >= limit for limit in thresholds]
        return np.stack([each.mean(axis=(-2, -1)) for each in reached], axis=-1)

    if len(scores) < FEW:
        nothing = np.full(len(thresholds), np.nan)
        return Band(thresholds, share(scores), nothing, nothing)
    drawn = share(resampled(scores, resamples, np.random.default_rng(0)))
    return Band(thresholds, share(scores), *np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0))


def curve(x: Array, values: Array, *, level: float = LEVEL, resamples: int = 1_000) -> Band:
    """IQM over runs at every point of a learning curve: ``x`` (N,), ``values`` (S, N), one row a run."""
    values = _checked(values)
    if len(values) < FEW:
        nothing = np.full(len(x), np.nan)
        return Band(x, iqm(values, axis=0), nothing, nothing)
    runs = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    drawn = np.stack([iqm(values[:, i][runs], axis=1) for i in range(len(x))], axis=-1)
    return Band(x, iqm(values, axis=0), *np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0))


def carried_forward(steps: Sequence[float], values: Sequence[float], at: Array) -> Array:
    """The last value logged at or before each of (N,) ``at``; NaN before the first one. ``steps`` do not decrease."""
    found = np.searchsorted(np.asarray(steps, dtype=float), at, side="right") - 1
    return np.where(found >= 0, np.asarray(values, dtype=float)[np.maximum(found, 0)], np.nan)


def _iqm_of_last(values: Array) -> Array:
    return iqm(values, axis=-1)


def _ends(values: Array, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(scores: Array) -> Array:
    """(S,) as (S, 1); at least one run, and every value a number."""
    scores = np.asarray(scores, dtype=np.float64)
    scores = scores[:, None] if scores.ndim == 1 else scores
    if scores.ndim != 2 or not scores.size or not np.isfinite(scores).all():
        raise ValueError(f"expected finite scores of shape (runs, tasks), got {scores.shape}")
    return scores

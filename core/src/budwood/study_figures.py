"""The three figures of a study: learning curves, intervals and the performance profile, each drawn once for page and file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from budwood import statistics
from budwood.charts import SERIES, count_in_thousands
from budwood.study_config import StudyConfig
from budwood.study_table import Tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = ("-", "--", ":", "-.")
THRESHOLDS = 200


@dataclass(frozen=True)
class Drawing:
    """``name`` of the file, ``size`` in inches, ``caption`` for people."""

    name: str
    title: str
    caption: str
    size: tuple[float, float]
    draw: Callable[[Axes], None]


def drawings(config: StudyConfig, tables: Tables) -> list[Drawing]:
    """What there is data for; empty while no run is finished."""
    main = config.main_metric
    if not any(len(values) for values in tables.scores[main].values()):
        return []
    metric = config.metrics[main]
    steps = _counted(metric.of)
    few = f"no band with fewer than {statistics.FEW} runs"
    curves = Drawing(
        "curves",
        f"Learning curves: {metric.metric}",
        f"Interquartile mean over runs; the band is its 95 % interval at each point, {few}. A run that ended early keeps "
        "its last value.",
        (8.6, 3.6),
        lambda axes: overlay(axes, tables.curves, list(config.variants), steps, metric.metric),
    )
    bars = Drawing(
        "intervals",
        f"{main} by variant",
        f"Dots are runs, the mark is their interquartile mean and the bar its 95 % interval, {few}."
        + (" Crosses are runs that never got there and count with the budget." if metric.reaches is not None else ""),
        (8.6, 0.9 + 0.5 * len(config.variants)),
        lambda axes: _intervals(axes, config, tables),
    )
    shares = Drawing(
        "profile",
        f"Performance profile: {main}",
        f"The share of runs that score at least as well as the threshold; {few}.",
        (8.6, 3.6),
        lambda axes: _profiles(axes, config, tables),
    )
    return [curves, bars, shares] if tables.curves else [bars, shares]


def _counted(of: str | None) -> str:
    """What an axis over that counter shows. Whoever logs ``env_steps`` logs those of the run's control."""
    if of is None:
        return "training steps"
    return "environment steps, evaluations included" if of.rpartition("/")[2] == "env_steps" else of


def style(index: int) -> dict[str, Any]:
    """Colour and line of the variant or run of that number: no two of the first 24 are the same."""
    return {"color": SERIES[index % len(SERIES)], "linestyle": LINES[index // len(SERIES) % len(LINES)]}


def overlay(axes: Axes, curves: dict[str, statistics.Band], order: Sequence[str], x_label: str, y_label: str) -> None:
    """Curves with their bands in one plot, in the order and the colours of ``order``."""
    for index, name in enumerate(order):
        if name in curves:
            band = curves[name]
            color = style(index)["color"]
            axes.fill_between(band.x, band.low, band.high, color=color, alpha=0.16, lw=0, step="post")
            alone = "o" if len(band.x) == 1 else None  # one evaluation a run draws no line
            axes.step(band.x, band.estimate, where="post", label=name, marker=alone, **style(index))
    axes.set(xlabel=x_label, ylabel=y_label)
    count_in_thousands(axes)


def _intervals(axes: Axes, config: StudyConfig, tables: Tables) -> None:
    main = config.main_metric
    rows = [row for row in tables.summary if row["metric"] == main]
    for index, row in enumerate(rows):
        values = tables.scores[main][row["variant"]]
        color = style(index)["color"]
        never = tables.censored[main][row["variant"]]
        dots = {"s": 12, "color": color, "alpha": 0.45, "lw": 0}
        axes.scatter(values[~never], np.full(np.sum(~never), index), **dots)
        axes.scatter(values[never], np.full(np.sum(never), index), **{**dots, "marker": "x", "lw": 1})
        axes.plot([row["low"], row["high"]], [index, index], color=color, lw=5, alpha=0.35, solid_capstyle="round")
        axes.plot([row["iqm"]], [index], marker="D", markersize=6, color=color)
    axes.set(xlabel=main, ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [f"{row['variant']}  n = {row['n']}" for row in rows])
    axes.grid(visible=False, axis="y")
    _thousands_if_large(axes)


def _profiles(axes: Axes, config: StudyConfig, tables: Tables) -> None:
    main = config.main_metric
    lower = config.metrics[main].lower_is_better
    scores = tables.scores[main]
    everything = np.concatenate(list(scores.values()))
    thresholds = np.unique(np.concatenate([np.linspace(everything.min(), everything.max(), THRESHOLDS), everything]))
    for index, (variant, values) in enumerate(scores.items()):
        if len(values):
            # Steps to a threshold: who never got there is at no number of steps there.
            values = np.where(tables.censored[main][variant], thresholds[-1] + 1.0, values)
            band = statistics.profile(values, thresholds, lower_is_better=lower)
            # A run counts at its own score: the share changes just after it, or, where less is better, from there on.
            where: Any = "post" if lower else "pre"
            axes.fill_between(band.x, band.low, band.high, color=style(index)["color"], alpha=0.16, lw=0, step=where)
            axes.step(band.x, band.estimate, where=where, label=variant, **style(index))
    axes.set(xlabel=f"{main}, threshold", ylabel="share of runs", ylim=(-0.03, 1.03))
    _thousands_if_large(axes)


def _thousands_if_large(axes: Axes) -> None:
    if max(map(abs, axes.get_xlim())) >= 10_000:
        count_in_thousands(axes)

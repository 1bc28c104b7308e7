"""From the journals of a study's runs to its tables: one row a run, one a variant and metric, one a pair of variants."""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from budwood import journal, statistics
from budwood.api import Array, History
from budwood.folder import write_atomically
from budwood.grid import Cell
from budwood.study_config import MetricConfig, StudyConfig

CURVE_POINTS = 100
Row = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """``value`` NaN if the run never logged the metric; ``censored`` if it never reached its threshold."""

    value: float
    censored: bool = False


@dataclass(frozen=True)
class Tables:
    """``cells``, ``summary`` and ``pairs`` are rows of equal keys; see :func:`tabulate`.

    ``scores``: metric -> variant -> (S,) values of the finished runs that have one; ``censored``: which of them never got to
    their threshold. ``curves``: variant -> the main metric over steps, where at least one run has one.
    """

    cells: list[Row]
    summary: list[Row]
    pairs: list[Row]
    scores: dict[str, dict[str, Array]]
    censored: dict[str, dict[str, Array]]
    curves: dict[str, statistics.Band]
    notes: list[str]


def points(history: History, metric: MetricConfig) -> tuple[list[float], list[float]]:
    """(steps, values) of what was logged as a number; ``of`` counts the steps where it is given.

    A counter is logged together with the metric or not at all, so the k-th value at a step has the k-th count at that step,
    and a value without its count is left out.
    """
    if metric.metric not in history:
        return [], []
    steps, values = history[metric.metric]
    at: Sequence[float] = steps
    if metric.of is not None:
        at = list(_counts(steps, *history.get(metric.of, ((), ()))))
    kept = [(x, y) for x, y in zip(at, values, strict=True) if math.isfinite(x) and math.isfinite(y)]
    return [float(x) for x, _ in kept], [y for _, y in kept]


def _counts(steps: Iterable[int], counted: Iterable[int], counts: Iterable[float]) -> Iterator[float]:
    """For each of ``steps`` the next of ``counts`` that was logged at that step, NaN if none is left."""
    waiting: dict[int, deque[float]] = {}
    for step, count in zip(counted, counts, strict=True):
        waiting.setdefault(step, deque()).append(count)
    for step in steps:
        yield waiting[step].popleft() if waiting.get(step) else math.nan


def measure(history: History, metric: MetricConfig, budget: int | None) -> Measured:
    """One number of one run. A threshold that was reached after the budget was not reached in time."""
    steps, values = points(history, metric)
    if not values:
        return Measured(math.nan)
    lower = metric.better == "lower"
    if metric.reaches is None:
        match metric.take:
            case "best":
                return Measured(min(values) if lower else max(values))
            case "mean":
                return Measured(float(np.mean(values)))
        return Measured(values[-1])
    assert budget is not None
    reached = (x for x, y in zip(steps, values, strict=True) if (y <= metric.reaches if lower else y >= metric.reaches))
    first = next(reached, math.inf)
    return Measured(first) if first <= budget else Measured(float(budget), censored=True)


def tabulate(config: StudyConfig, cells: Sequence[Cell]) -> Tables:
    """Tables over the finished runs among ``cells``; the others have a row with their status and nothing else."""
    histories = {cell: journal.history(cell.run.folder) for cell in cells if cell.done}
    found: dict[Cell, dict[str, Measured]] = {
        cell: {name: measure(history, metric, config.budget) for name, metric in config.metrics.items()}
        for cell, history in histories.items()
    }
    scores: dict[str, dict[str, Array]] = {name: {} for name in config.metrics}
    censored: dict[str, dict[str, Array]] = {name: {} for name in config.metrics}
    summary = []
    for name, metric in config.metrics.items():
        for variant in config.variants:
            all_measured = [all_of[name] for cell, all_of in found.items() if cell.variant == variant]
            measured = [one for one in all_measured if math.isfinite(one.value)]
            values = scores[name][variant] = np.array([one.value for one in measured])
            never = censored[name][variant] = np.array([one.censored for one in measured], dtype=bool)
            summary.append(_summary(variant, name, values, None if metric.reaches is None else int(never.sum())))
    return Tables(
        [_row(cell, config, found.get(cell, {})) for cell in cells],
        summary,
        list(_pairs(config, scores)),
        scores,
        censored,
        dict(_curves(config, histories)),
        [*never_logged(config, list(histories.values())), *_diverged(config, histories)],
    )


def _row(cell: Cell, config: StudyConfig, found: Mapping[str, Measured]) -> Row:
    status = cell.run.status
    row: Row = {
        "variant": cell.variant,
        "seed": cell.seed,
        "run": cell.run.run_id,
        "status": cell.status,
        "steps": status.get("steps", 0),
        "env_steps": status.get("env_steps", 0),
        "cpu_minutes": status.get("cpu_seconds", 0.0) / 60,
    }
    for name, metric in config.metrics.items():
        row[name] = found[name].value if name in found else math.nan
        if metric.reaches is not None:
            row[f"{name} censored"] = found[name].censored if name in found else None
    return {**row, "error": status.get("error") or ""}


def _summary(variant: str, metric: str, values: Array, censored: int | None) -> Row:
    nothing = statistics.Interval(math.nan, math.nan, math.nan)
    middle = statistics.interval(values) if len(values) else nothing
    return {
        "variant": variant,
        "metric": metric,
        "n": len(values),
        "iqm": middle.estimate,
        "low": middle.low,
        "high": middle.high,
        "mean": float(values.mean()) if len(values) else math.nan,
        "median": float(np.median(values)) if len(values) else math.nan,
        "censored": censored,
    }


def _pairs(config: StudyConfig, scores: Mapping[str, Mapping[str, Array]]) -> Iterator[Row]:
    """How probable it is that a run of ``x`` is better than one of ``y``."""
    for name, metric in config.metrics.items():
        sign = -1.0 if metric.lower_is_better else 1.0
        for x, y in config.pair_list:
            one, other = sign * scores[name][x], sign * scores[name][y]
            if len(one) and len(other):
                better = statistics.improvement(one, other)
                chance = {"probability": better.estimate, "low": better.low, "high": better.high}
                yield {"metric": name, "x": x, "y": y, **chance, "n_x": len(one), "n_y": len(other)}


def _curves(config: StudyConfig, histories: Mapping[Cell, History]) -> Iterator[tuple[str, statistics.Band]]:
    """The main metric over steps. A run that ended early keeps its last value: it would not have changed any more."""
    metric = config.metrics[config.main_metric]
    runs = {
        variant: [
            found
            for cell, history in histories.items()
            if cell.variant == variant and (found := points(history, metric))[0]
        ]
        for variant in config.variants
    }
    end = max((steps[-1] for found in runs.values() for steps, _ in found), default=0.0)
    for variant, kept in runs.items():
        if kept:
            start = max(steps[0] for steps, _ in kept)
            x = np.linspace(start, end, CURVE_POINTS) if end > start else np.array([start])
            values = np.stack([statistics.carried_forward(steps, values, x) for steps, values in kept])
            yield variant, statistics.curve(x, values)


def never_logged(config: StudyConfig, histories: Sequence[History]) -> Iterator[str]:
    """What the metrics of a study name and none of its runs logged."""
    known = {key for history in histories for key in history}
    for key in dict.fromkeys(key for metric in config.metrics.values() for key in (metric.metric, metric.of) if key):
        if histories and key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"logged were {', '.join(sorted(known))}"
            yield f"no run logged {key!r} ({hint})"


def _diverged(config: StudyConfig, histories: Mapping[Cell, History]) -> Iterator[str]:
    for key in dict.fromkeys(metric.metric for metric in config.metrics.values()):
        for cell, history in histories.items():
            values = history[key][1] if key in history else []
            if values and not math.isfinite(values[-1]):
                found = "it counts with those before" if any(map(math.isfinite, values)) else "it has no other"
                yield f"variant {cell.variant}, seed {cell.seed}: the last value of {key!r} is {values[-1]}; {found}"


def to_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Numbers in full precision; what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: "" if value is None or value != value else value for key, value in row.items()})
    write_atomically(path, text.getvalue())
    return path

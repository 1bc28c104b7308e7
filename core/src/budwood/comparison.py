"""Finished runs side by side: their last numbers, what they were configured differently, and their curves in one plot."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from budwood import config, journal
from budwood.api import ConfigError, History
from budwood.charts import Charts, count_in_thousands, document
from budwood.folder import RunFolder, default_output, find_run, prepare_output, write_atomically
from budwood.page import block, page, table
from budwood.progress import EVALUATED_RETURN
from budwood.study_figures import style
from budwood.study_page import differences
from budwood.tracking import flatten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE = "compare.html"
MANY = 12
"""Metrics in common that are drawn without being asked for."""
APART = ("output", "tracking", "checkpoint")
"""Settings that no number depends on."""


@dataclass(frozen=True)
class Comparison:
    """``metrics``: one row a metric that all runs logged, with every run's last value; ``settings``: one row a setting
    that differs; ``page``: the overlaid curves."""

    runs: list[str]
    metrics: list[dict[str, Any]]
    settings: list[dict[str, Any]]
    page: Path


def compare(references: Sequence[str], metrics: Sequence[str] = (), to: Path | None = None) -> Comparison:
    """Overlay runs. ``metrics``: what to draw; default: the evaluated return and what else all of them logged, up to a
    dozen. ``to``: the page; default: ``compare.html`` in the output folder.

    :raises ConfigError: fewer than two runs, or a metric that one of them never logged.
    """
    runs = list({run.folder: run for run in map(find_run, references)}.values())
    if len(runs) < 2:
        raise ConfigError("there is nothing to compare", do="Name two runs or more; budwood runs lists them")
    labels = _labels(runs)
    histories = {label: journal.history(run.folder) for label, run in zip(labels, runs, strict=True)}
    common = [key for key in next(iter(histories.values())) if all(key in history for history in histories.values())]
    drawn = list(metrics) or sorted(common, key=lambda key: (key != EVALUATED_RETURN, key.startswith("time/")))[:MANY]
    for metric in drawn:
        _check_logged(metric, histories)
    flat = {label: _settings(run) for label, run in zip(labels, runs, strict=True)}
    last = [
        {"metric": key, **{label: history[key][1][-1] for label, history in histories.items()}}
        for key in dict.fromkeys([*drawn, *common])
    ]
    settings = differences(flat, but=("name",))
    path = to or prepare_output(default_output()) / FILE
    body = [
        f'<header><p class="name">budwood compare</p><h1>{escape(" and ".join(labels))}</h1></header>',
        *_curves(drawn, histories),
        block("Last values", table(last) if last else "<p>These runs have no metric in common.</p>"),
        block("Different settings", table(settings) if settings else "<p>None: these runs say the same.</p>"),
    ]
    write_atomically(path, page("budwood compare", body))
    return Comparison(labels, last, settings, path)


def _labels(runs: Sequence[RunFolder]) -> list[str]:
    """Run ids; folders where two runs of different output folders have the same."""
    ids = [run.run_id for run in runs]
    return ids if len(set(ids)) == len(ids) else [str(run.folder) for run in runs]


def _settings(run: RunFolder) -> dict[str, str]:
    data = config.load(run.config_file).data
    return flatten({key: value for key, value in data.items() if key not in APART})


def _check_logged(metric: str, histories: Mapping[str, History]) -> None:
    for label, history in histories.items():
        if metric not in history:
            near = difflib.get_close_matches(metric, history, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It logged {', '.join(sorted(history))}"
            raise ConfigError(f"this run never logged {metric!r}", where=label, do=hint)


def _curves(metrics: Sequence[str], histories: Mapping[str, History]) -> list[str]:
    charts = Charts()
    figures = [
        f"<figure><h3>{escape(metric)}</h3>{charts.place(document(_drawing(metric, histories), (6.2, 3.2)))}</figure>"
        for metric in metrics
    ]
    return [block("Curves", f'<div class="figures">{"".join(figures)}</div>')] if figures else []


def _drawing(metric: str, histories: Mapping[str, History]) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for index, (label, history) in enumerate(histories.items()):
            steps, values = history[metric]
            axes.plot(steps, np.asarray(values, dtype=float), label=label, **style(index))
        axes.set(xlabel="training steps", ylabel=metric)
        count_in_thousands(axes)

    return draw

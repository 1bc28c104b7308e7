"""``report.html``: one self-contained page a run, made of plain data. No scripts, nothing fetched, same input same bytes."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from budwood.api import Contributed, Evaluation, Figure, History, ReportSection, Series
from budwood.charts import Charts, sparkline
from budwood.compose import KINDS, Binding
from budwood.folder import write_atomically
from budwood.page import block, folded, page, table
from budwood.progress import TRAINING_RETURN, duration, number
from budwood.yaml_io import dump

FILE = "report.html"
RESAMPLES = 2_000
NUMBERS = {name: {"training": f"train/{name}", "evaluation": f"eval/{name}"} for name in ("reward", "loss")}
"""What stands for returns where there are none: figure -> line -> metric."""
FEW = 5
"""Fewer episodes than this get no interval: a bootstrap of them says little."""


def write(
    folder: Path,
    *,
    title: str,
    status: str,
    config: Mapping[str, Any],
    versions: Mapping[str, str],
    history: History,
    sections: Sequence[Contributed[ReportSection]],
    evaluations: Sequence[tuple[int, Evaluation]],
    timing: Mapping[str, float],
    bindings: Sequence[Binding],
    notes: Sequence[str] = (),
    unit: str = "environment steps",
) -> Path:
    """Write the page into ``folder`` and return its path.

    ``config`` without secrets; ``evaluations`` (training steps, evaluation) in order; ``timing`` seconds by activity, with
    ``total`` for all of it; ``notes`` what plugins say of the run, a sentence each; ``unit`` what a step of training is.
    """
    charts = Charts()
    body = [
        f'<header><p class="name">budwood run</p><h1>{escape(title)}</h1></header>',
        _summary(status, config, history, evaluations, timing),
        *(f"<p>{escape(note)}</p>" for note in notes),
        _learning(charts, history, evaluations, unit),
        *(_section(charts, item) for item in sections),
        _bindings(bindings),
        _timing(timing),
        _metrics(history),
        folded("Configuration", f"<pre>{escape(dump(config))}</pre>"),
        folded("Versions", table(({"package": name, "version": text} for name, text in versions.items()))),
    ]
    path = folder / FILE
    write_atomically(path, page(title, body))
    return path


def interval(returns: Sequence[float] | np.ndarray[Any, Any], level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of (E,) episode returns; the same for the same returns."""
    values = np.asarray(returns, dtype=np.float64)
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _summary(
    status: str,
    config: Mapping[str, Any],
    history: History,
    evaluations: Sequence[tuple[int, Evaluation]],
    timing: Mapping[str, float],
) -> str:
    logged = (step for steps, _ in history.values() for step in steps)
    steps = max((*logged, *(step for step, _ in evaluations)), default=0)
    tiles = [
        ("status", escape(status), ""),
        ("steps", f"{steps:,}", ""),
        (
            "wall time",
            duration(timing["total"]),
            f"{number(steps / timing['total'])} steps/s" if timing["total"] else "",
        ),
        ("seed", escape(str(config.get("seed", ""))), ""),
    ]
    if evaluations:
        _, last = evaluations[-1]
        note = f"mean of {len(last.returns)} episodes, too few for an interval"
        if np.ptp(last.returns) == 0 and len(last.returns) > 1:
            note = f"the same in all {len(last.returns)} episodes of this one run"
        elif len(last.returns) >= FEW:
            low, high = interval(last.returns)
            note = f"95 % interval {number(low)} to {number(high)}, {len(last.returns)} episodes of this one run"
        tiles.insert(1, ("final return", number(float(last.returns.mean())), note))
    cells = "".join(
        f'<div class="tile"><dt>{name}</dt><dd>{value}</dd><p>{note}</p></div>' for name, value, note in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def _learning(charts: Charts, history: History, evaluations: Sequence[tuple[int, Evaluation]], unit: str) -> str:
    training = next((history[key] for key in TRAINING_RETURN if key in history), None)
    if training is None and not evaluations:
        return _numbers(charts, history)
    chart = charts.learning_curve(training, [(step, item.returns) for step, item in evaluations], unit)
    said = [] if training is None else ["training return: a running mean over episodes with exploration"]
    if evaluations:
        said.append("evaluation: without exploration noise, the band is mean ± 1.96 standard errors over episodes")
    return block("Learning curve", f"<figure>{chart}<figcaption>{'; '.join(said)}.</figcaption></figure>")


def _numbers(charts: Charts, history: History) -> str:
    """In a run without episodes: what it was trained on and evaluated by."""
    drawn = []
    for name, keys in NUMBERS.items():
        there = [(label, *history[key]) for label, key in keys.items() if key in history]
        series = [
            Series(label, steps, values, "line" if len(steps) > 1 else "points") for label, steps, values in there
        ]
        if series:
            drawn.append(f"<figure>{charts.figure(Figure(name, 'steps', name, series))}</figure>")
    return block("Learning curve", f'<div class="figures">{"".join(drawn)}</div>') if drawn else ""


def _section(charts: Charts, item: Contributed[ReportSection]) -> str:
    section = item.value
    drawn = []
    for figure in section.figures:
        try:
            drawn.append(f"<figure><h3>{escape(figure.title)}</h3>{charts.figure(figure)}</figure>")
        except (TypeError, ValueError) as error:
            drawn.append(f'<p class="bad">{escape(figure.title)} could not be drawn: {escape(str(error))}.</p>')
    drawn += [
        f'<figure><h3>{escape(picture.title)}</h3><img alt="{escape(picture.title)}" '
        f'src="data:{escape(picture.media_type)};base64,{b64encode(picture.image).decode()}"></figure>'
        for picture in section.pictures
    ]
    parts = [
        *(f"<p>{escape(paragraph)}</p>" for paragraph in section.text),
        f'<div class="figures">{"".join(drawn)}</div>' if drawn else "",
        table(section.table) if section.table else "",
    ]
    return block(section.title, "".join(parts), item.who)


def _bindings(bindings: Sequence[Binding]) -> str:
    if not bindings:
        return block("Bindings", "<p>No plugin contributed to this run: it is the bare trainer.</p>")
    rows = (
        {
            "order": binding.order,
            "plugin": binding.who,
            "contribution": f"{KINDS[binding.kind]} {binding.name}",
            "seam": binding.place,
            "grade": binding.grade,
        }
        for binding in bindings
    )
    return block("Bindings", table(rows))


def _timing(timing: Mapping[str, float]) -> str:
    """Where the wall time went; what no activity claims is training."""
    total = timing["total"]
    parts = {name: seconds for name, seconds in timing.items() if name != "total"}
    parts = {"training": max(0.0, total - sum(parts.values())), **parts}
    shares = {name: seconds / total if total else 0.0 for name, seconds in parts.items()}
    bar = "".join(
        f'<span class="s{i}" style="width:{100 * share:.2f}%"></span>' for i, share in enumerate(shares.values())
    )
    legend = "".join(
        f'<li><i class="s{i}"></i>{escape(name)} {duration(parts[name])} <b>{100 * share:.1f} %</b></li>'
        for i, (name, share) in enumerate(shares.items())
    )
    return block("Time", f'<div class="bar">{bar}</div><ul class="legend">{legend}</ul>')


def _metrics(history: History) -> str:
    rows = []
    for name in sorted(history):
        values = np.asarray(history[name][1], dtype=np.float64)
        finite = values[np.isfinite(values)]
        low, high = (number(float(finite.min())), number(float(finite.max()))) if len(finite) else ("", "")
        cells = (escape(name), number(float(values[-1])), low, high, sparkline(values))
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    if not rows:
        return ""
    head = "".join(f"<th>{name}</th>" for name in ("metric", "last", "lowest", "highest", "over time"))
    return folded("Everything logged", f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>')

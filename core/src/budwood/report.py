"""``report.html``: one self-contained page a run, made of plain data. No scripts, nothing fetched, same input same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from budwood.api import Contributed, Evaluation, History, ReportSection
from budwood.charts import Charts, sparkline
from budwood.compose import KINDS, Binding
from budwood.folder import write_atomically
from budwood.progress import TRAINING_RETURN, duration, number
from budwood.yaml_io import dump

FILE = "report.html"
RESAMPLES = 2_000
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
) -> Path:
    """Write the page into ``folder`` and return its path.

    ``config`` without secrets; ``evaluations`` (training steps, evaluation) in order; ``timing`` seconds by activity, with
    ``total`` for all of it.
    """
    charts = Charts()
    body = [
        f'<header><p class="name">budwood run</p><h1>{escape(title)}</h1></header>',
        _summary(status, config, history, evaluations, timing),
        _learning(charts, history, evaluations),
        *(_section(charts, item) for item in sections),
        _bindings(bindings),
        _timing(timing),
        _metrics(history),
        _folded("Configuration", f"<pre>{escape(dump(config))}</pre>"),
        _folded("Versions", _table(({"package": name, "version": text} for name, text in versions.items()))),
    ]
    path = folder / FILE
    write_atomically(
        path, _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(part for part in body if part))
    )
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


def _learning(charts: Charts, history: History, evaluations: Sequence[tuple[int, Evaluation]]) -> str:
    training = next((history[key] for key in TRAINING_RETURN if key in history), None)
    if training is None and not evaluations:
        return ""
    chart = charts.learning_curve(training, [(step, item.returns) for step, item in evaluations])
    said = [] if training is None else ["training return: a running mean over episodes with exploration"]
    if evaluations:
        said.append("evaluation: deterministic actions, the band is mean ± 1.96 standard errors over episodes")
    return _block("Learning curve", f"<figure>{chart}<figcaption>{'; '.join(said)}.</figcaption></figure>")


def _section(charts: Charts, item: Contributed[ReportSection]) -> str:
    section = item.value
    drawn = []
    for figure in section.figures:
        try:
            drawn.append(f"<figure><h3>{escape(figure.title)}</h3>{charts.figure(figure)}</figure>")
        except (TypeError, ValueError) as error:
            drawn.append(f'<p class="bad">{escape(figure.title)} could not be drawn: {escape(str(error))}.</p>')
    parts = [
        *(f"<p>{escape(paragraph)}</p>" for paragraph in section.text),
        f'<div class="figures">{"".join(drawn)}</div>' if drawn else "",
        _table(section.table) if section.table else "",
    ]
    return _block(section.title, "".join(parts), item.who)


def _bindings(bindings: Sequence[Binding]) -> str:
    if not bindings:
        return _block("Bindings", "<p>No plugin contributed to this run: it is the bare trainer.</p>")
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
    return _block("Bindings", _table(rows))


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
    return _block("Time", f'<div class="bar">{bar}</div><ul class="legend">{legend}</ul>')


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
    return _folded("Everything logged", f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>')


# ---- pieces of a page -------------------------------------------------------------------------------------------------


def _block(title: str, content: str, who: str = "") -> str:
    by = f' <span class="who">{escape(who)}</span>' if who else ""
    return f"<section><h2>{escape(title)}{by}</h2>{content}</section>"


def _folded(title: str, content: str) -> str:
    return f"<section><details><summary><h2>{escape(title)}</h2></summary>{content}</details></section>"


def _table(rows: Iterable[Mapping[str, object]]) -> str:
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{escape(str(column))}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(row.get(column))}</td>' for column in columns)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: object) -> str:
    if isinstance(value, (float, np.floating)):
        return number(float(value))
    return "" if value is None else escape(str(value))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5b6676; --line: #dfe4ea; --back: #f6f7f9; --card: #fff;
  --bad: #b3261e; --s0: #2f6f4f; --s1: #c8642c; --s2: #3a6ea5; --s3: #8a5aa8; --s4: #b08a1e; --s5: #64748b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #313a46; --back: #14181d;
  --card: #1b2027; --bad: #f2b8b5; --s0: #6fbf93; --s1: #e79562; --s2: #7fb0e0; --s3: #c39bdc; --s4: #dcbf63;
  --s5: #9fb0c4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.65rem; line-height: 1.25; margin: 0 0 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 .9rem; } h3 { font-size: .92rem; font-weight: 600; margin: 0 0 .3rem; }
.name { margin: 0; color: var(--s0); font-weight: 600; font-size: .85rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.25rem 1.4rem;
  margin-top: 1.1rem; }
section p { max-width: 46rem; margin: 0 0 .8rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .8rem; margin: 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .85rem 1rem; }
dt { color: var(--soft); font-size: .82rem; } dd { margin: 0; font-size: 1.35rem; font-weight: 600; }
.tile p { margin: .2rem 0 0; color: var(--soft); font-size: .78rem; line-height: 1.35; }
section > h2 { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline; column-gap: 1rem; }
.who { color: var(--soft); font-size: .8rem; font-weight: 400; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .85rem; margin-top: .3rem; }
figure svg { width: 100%; height: auto; display: block; } svg text { font-family: inherit !important; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1.2rem;
  margin-bottom: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .38rem .9rem .38rem 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
th { color: var(--soft); font-weight: 500; } tr:last-child td { border-bottom: 0; }
td svg { display: block; }
pre { margin: .9rem 0 0; overflow-x: auto; font: .84rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
summary { cursor: pointer; } summary h2 { display: inline; margin: 0; } details > .wide { margin-top: .9rem; }
.bar { display: flex; height: 14px; border-radius: 7px; overflow: hidden; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; padding: 0; margin: .8rem 0 0;
  font-size: .88rem; } .legend i { display: inline-block; width: .7em; height: .7em; border-radius: 2px;
  margin-right: .45em; } .legend b { color: var(--soft); font-weight: 400; margin-left: .3em; }
.s0 { background: var(--s0); } .s1 { background: var(--s1); } .s2 { background: var(--s2); }
.s3 { background: var(--s3); } .s4 { background: var(--s4); } .s5 { background: var(--s5); }
.bad { color: var(--bad); }
@media print { body { background: none; } section, .tile { break-inside: avoid; } }
"""

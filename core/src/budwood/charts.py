"""Charts as inline SVG, drawn by matplotlib's SVG backend and recoloured so that the page's own colours apply."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from budwood.api import Array, Figure
from budwood.page import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

INK, GRID = "#010101", "#020202"
SERIES = ("#030303", "#040404", "#050505", "#060606", "#070707", "#080808")
VARIABLES = {INK: "currentColor", GRID: "var(--line)", **{mark: f"var(--s{i})" for i, mark in enumerate(SERIES)}}
"""Colours drawn with -> what the page puts in their place, so that one drawing suits light and dark."""

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "budwood",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "font.size": 10,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


class Charts:
    """The charts of one page: every identifier in them is made unique."""

    def __init__(self) -> None:
        self._count = 0

    def learning_curve(
        self,
        training: tuple[Sequence[int], Sequence[float]] | None,
        evaluations: Sequence[tuple[int, Array]],
        unit: str,
    ) -> str:
        """``unit``: what steps are. ``training`` (steps, returns); ``evaluations`` (step, (E,) returns): mean and mean +-
        1.96 standard errors."""

        def draw(axes: Axes) -> None:
            if training is not None:
                axes.plot(*training, color=SERIES[5], label="training", linewidth=1.3)
            if evaluations:
                steps = [step for step, _ in evaluations]
                means = np.array([returns.mean() for _, returns in evaluations])
                errors = np.array(
                    [
                        returns.std(ddof=1) / len(returns) ** 0.5 if len(returns) > 1 else 0.0
                        for _, returns in evaluations
                    ]
                )
                axes.fill_between(
                    steps, means - 1.96 * errors, means + 1.96 * errors, color=SERIES[0], alpha=0.18, lw=0
                )
                axes.plot(steps, means, color=SERIES[0], label="evaluation", marker="o", markersize=3.5)
            axes.set(xlabel=unit, ylabel="return")
            count_in_thousands(axes)

        return self.place(document(draw, (8.6, 3.4)))

    def figure(self, figure: Figure) -> str:
        """A plugin's figure.

        :raises ValueError: series whose ``x`` and ``y`` differ in length, or a style that does not exist.
        """

        def draw(axes: Axes) -> None:
            for i, series in enumerate(figure.series):
                color = SERIES[i % len(SERIES)]
                if series.style == "points":
                    axes.scatter(series.x, series.y, s=22, color=color, label=series.label, zorder=3)
                elif series.style == "step":
                    axes.step(series.x, series.y, where="post", color=color, label=series.label)
                elif series.style == "line":
                    axes.plot(series.x, series.y, color=color, label=series.label)
                else:
                    raise ValueError(f"there is no style {series.style!r}; there are line, points and step")
            axes.set(xlabel=figure.x_label, ylabel=figure.y_label)
            if figure.y_log:
                axes.set_yscale("log")
                _plain_numbers(axes.yaxis)
            if figure.x_log:
                axes.set_xscale("log")
                _plain_numbers(axes.xaxis)
            elif max((max(series.x, default=0) for series in figure.series), default=0) >= 10_000:
                count_in_thousands(axes)

        return self.place(document(draw, (6.2, 3.2)))

    def place(self, document: str) -> str:
        """What :func:`document` drew, as an element of the page."""
        self._count += 1
        return _inline(document, f"c{self._count}-")


def standalone(document: str) -> str:
    """What :func:`document` drew, as a file of its own in the colours of the light page."""
    for mark, variable in VARIABLES.items():
        document = document.replace(mark, LIGHT["ink" if mark == INK else variable[6:-1]])
    head, opening, rest = document.partition("<defs>")
    return f'{head}<rect width="100%" height="100%" fill="{LIGHT["card"]}"/>{opening}{rest}'


def document(draw: Callable[[Axes], None], size: tuple[float, float]) -> str:
    """An SVG document of what ``draw`` puts on the axes, in colours that stand for others; ``size`` in inches."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        canvas = Canvas(figsize=size)
        axes = canvas.add_subplot()
        draw(axes)
        entries = len(axes.get_legend_handles_labels()[0])
        if entries > len(SERIES):
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        elif entries > 1:
            axes.legend()
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        canvas.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return buffer.getvalue()


def count_in_thousands(axes: Axes) -> None:
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _plain_numbers(axis: Axis) -> None:
    """Ticks of a logarithmic axis as plain numbers; between the powers of ten all within one decade, 2 and 5 up to three."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = axis.get_view_interval()
    plain = StrMethodFormatter("{x:g}")
    axis.set_major_formatter(plain)
    if 10 * low <= high < 1000 * low:
        axis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    axis.set_minor_formatter(plain if high < 1000 * low else NullFormatter())


def _inline(document: str, prefix: str) -> str:
    """The <svg> element of a document, with the page's colours and with identifiers of its own."""
    svg = document[document.index("<svg") :].replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    svg = svg.replace("xlink:href", "href").replace(' xmlns="http://www.w3.org/2000/svg"', "")
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", svg)
    for mark, value in VARIABLES.items():
        svg = svg.replace(mark, value)
    return svg.replace("<svg", '<svg role="img"', 1).strip()


def sparkline(values: Array, width: int = 140, height: int = 26, points: int = 140) -> str:
    """A metric's course in one small line, (N,) values evenly spaced; what is not finite is left out."""
    finite = values[np.isfinite(values)]
    if len(finite) < 2:
        return ""
    chosen = finite[np.linspace(0, len(finite) - 1, min(points, len(finite))).astype(int)]
    low, high = float(chosen.min()), float(chosen.max())
    x = np.linspace(1, width - 1, len(chosen))
    y = height - 2 - (height - 4) * ((chosen - low) / (high - low) if high > low else np.full(len(chosen), 0.5))
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return (
        f'<svg role="img" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<polyline points="{line}" fill="none" stroke="var(--s0)" stroke-width="1.4"/></svg>'
    )

"""What commands print and return."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from budwood.redact import scrubbed, without_secrets


@dataclass(frozen=True)
class Answer:
    """What a command returns: ``data`` is the line that ``--json`` prints, ``code`` the exit code."""

    data: Any
    code: int = 0


def say(text: str = "") -> None:
    """A line for people: standard output, or standard error under ``--json``."""
    click.echo(without_secrets(text))


def title(text: str) -> None:
    click.secho(text, bold=True)


def table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Aligned columns with a header; the last one is as long as it likes."""
    cells = [[str(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    click.secho(_aligned(columns, widths), dim=True)
    for line in cells:
        say(_aligned(line, widths))


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def facts(rows: Mapping[str, object]) -> None:
    """``name  value`` lines; empty values are left out."""
    shown = {name: value for name, value in rows.items() if value not in (None, "")}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        say(f"{name.ljust(width)}  {value}")


HEADLINES = (
    ("return", "eval/return_mean"),
    *((name, name) for name in ("eval/reward", "eval/loss", "train/reward", "train/loss")),
)
"""Label -> metric: what says most of a run, whichever kind it is; the first one present."""


def headline(metrics: Mapping[str, Any]) -> tuple[str, float] | None:
    """The label and the value of a run's first number."""
    return next(((label, metrics[name]) for label, name in HEADLINES if metrics.get(name) is not None), None)


def shown(label: str, value: float) -> str:
    """A :func:`headline` in a column; returns have two decimals, however large they are."""
    return f"{label} {value:.2f}" if label == "return" else f"{label} {value:.4g}"


def json_line(data: Any) -> str:
    """One line of strict JSON, whatever a reader takes for the end of a line; what JSON has no word for (NaN, infinities)
    becomes null."""
    text = json.dumps({} if data is None else scrubbed(_plain(data)), ensure_ascii=False, allow_nan=False)
    return re.sub("[\x7f-\x9f\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value

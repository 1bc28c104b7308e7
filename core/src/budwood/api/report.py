"""What a plugin adds to the report: text and figures as plain data; the core draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

History = Mapping[str, tuple[Sequence[int], Sequence[float]]]
"""metric name -> (steps, values), everything logged in a run."""


@dataclass(frozen=True)
class Series:
    """``style``: ``line``, ``points`` or ``step``."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "line"


@dataclass(frozen=True)
class Figure:
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    y_log: bool = False
    x_log: bool = False


@dataclass(frozen=True)
class Picture:
    """``image`` is a whole file, such as a GIF; it becomes part of the page, so keep it small. ``media_type`` as image/gif."""

    title: str
    image: bytes
    media_type: str


@dataclass(frozen=True)
class ReportSection:
    """``text`` is Markdown-free prose, one paragraph an item; ``table`` is rows of equal keys."""

    title: str
    text: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    table: Sequence[Mapping[str, object]] = field(default_factory=tuple)
    pictures: Sequence[Picture] = ()

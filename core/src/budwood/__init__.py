"""Plugins that extend the trainers people already use, without forks or patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from budwood.comparison import Comparison, compare
    from budwood.grafting import graft
    from budwood.runs import Restored, Result, restored, resume, run
    from budwood.studies import StudyResult, study

__all__ = [
    "Comparison",
    "Restored",
    "Result",
    "StudyResult",
    "__version__",
    "compare",
    "graft",
    "restored",
    "resume",
    "run",
    "study",
]

_HOMES = {
    "Comparison": "budwood.comparison",
    "compare": "budwood.comparison",
    "graft": "budwood.grafting",
    "run": "budwood.runs",
    "resume": "budwood.runs",
    "Result": "budwood.runs",
    "Restored": "budwood.runs",
    "restored": "budwood.runs",
    "study": "budwood.studies",
    "StudyResult": "budwood.studies",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'budwood' has no attribute {name!r}")

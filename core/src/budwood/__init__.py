"""Plugins that extend the trainers people already use, without forks or patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from budwood.graft import graft
    from budwood.run import Result, resume, run

__all__ = ["Result", "__version__", "graft", "resume", "run"]

_HOMES = {"graft": "budwood.graft", "run": "budwood.run", "resume": "budwood.run", "Result": "budwood.run"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'budwood' has no attribute {name!r}")

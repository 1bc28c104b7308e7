"""Where what happens in a session goes: a record of numbers, and a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Recorder(Protocol):
    """Where numbers go: the journal of a run, or the trainer's own logger in a grafted script."""

    def metrics(self, data: Mapping[str, float], step: int) -> None: ...

    def flush(self) -> None: ...


class Screen(Protocol):
    """What a person sees meanwhile, if ``shown``."""

    shown: bool

    def update(self, steps: int, metrics: Mapping[str, float]) -> None: ...

    def phase(self, text: str) -> None: ...

    def message(self, text: str) -> None: ...


class Unheard:
    """The recorder of a process that leaves recording to another one."""

    def metrics(self, data: Mapping[str, float], step: int) -> None: ...

    def flush(self) -> None: ...
